# Everything that one types; `make demo` and `make test` need nothing but Python 3.11 to 3.13, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= demo-output

.PHONY: help venv light demo test lint types layers clusters hosts unit sweep bench docs pins prometheus clean

help:
	@echo "make demo   set all up and run the main job on real images and weights"
	@echo "make test   set all up, then lint, type-check, check the layers and run the tests"
	@echo "make bench  images per second of extract, of the model alone and of decoding alone"
	@echo "make docs   the documentation as a site, in site/index.html"
	@echo "make light  like make venv, without FAISS's GPU build (1.4 GB less to download)"
	@echo "make sweep  the tests over every model of torchvision and the large ones of Keras, of more clusters that grow, and of nodes out of memory"
	@echo "make prometheus  Debian's Prometheus into .venv, for the tests of cluster/monitoring, which skip without it"
	@echo "make venv | lint | types | layers | clusters | hosts | unit | pins | clean"

venv: .venv/installed

# uv installs the pins in a minute, bytecode included, which every command and Ray worker would else compile anew; the stamp makes
# the next call free.
.venv/installed: requirements.txt pyproject.toml
	$(make_venv)
	$(INSTALL) --requirements requirements.txt
	$(INSTALL) --no-deps --editable .
	@touch $@

# The same pins, with faiss-cpu in place of faiss-gpu, which brings a second CUDA.
light:
	$(make_venv)
	{ grep -v -e '^faiss' -e '^nvidia-.*-cu12==' requirements.txt; sed -n 's/^\(faiss-cpu==[0-9.]*\).*/\1/p' requirements.txt; } > .venv/light.txt
	$(INSTALL) --requirements .venv/light.txt
	$(INSTALL) --no-deps --editable .
	@touch .venv/installed

INSTALL := VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version), expected 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
endef

demo: venv
	$(BIN)/python -m tlray.demo $(OUTPUT)

# Clusters mostly wait, for starts and time-outs; the other tests take what they leave of the processor.
test: lint types layers
	$(MAKE) --jobs=2 --output-sync=target --no-print-directory clusters unit
	$(MAKE) --no-print-directory hosts

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

layers: venv
	$(BIN)/lint-imports

clusters: venv
	$(BIN)/pytest -m "ray and not hosts and not sweep" --durations=15

# Three nodes on one machine, which must notice within seconds that one is gone: alone.
hosts: venv
	$(BIN)/pytest -m hosts

# A test that ends its process ends the whole run, which would else wait for that test for ever.
unit: venv
	nice -n 19 $(BIN)/pytest -m "not ray and not sweep" --numprocesses auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --durations=15

# Every model of torchvision, the large ones of Keras, more clusters: minutes that only a change of what they are about needs.
sweep: venv
	$(BIN)/pytest -m sweep --numprocesses auto --maxprocesses 4

bench: venv
	$(BIN)/python -m tests.bench.pipeline

docs: venv
	$(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

# After a change of pyproject.toml: resolve exact versions for all platforms, without any address of a registry.
pins: venv
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --output-file requirements.txt

# Two programs of Debian's package, unpacked: nothing is installed on the machine, and no service starts.
prometheus: venv
	cd .venv && apt-get download --quiet prometheus \
		&& dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 --directory=bin ./usr/bin/prometheus ./usr/bin/promtool \
		&& rm prometheus_*.deb

clean:
	rm -rf .venv demo-output site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
