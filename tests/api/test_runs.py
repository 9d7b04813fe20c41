"""The commands as functions: one vocabulary with flags and files, the same messages, and nothing of the process changed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tlray
from tests.api.conftest import RECIPE, Made
from tests.photos import error_of, write_photos
from tests.photos import tlray as command
from tlray.cli.flags import flag_of
from tlray.errors import ConfigError, TooManyFailuresError

NOTEBOOK = """
import asyncio, json, logging, os, random, signal, sys, threading, warnings
import numpy as np, pyarrow as pa, torch, faiss
import tlray
from tlray.models.encoder import memory

def refuse():
    raise AssertionError("the allocator is the program's own")

memory.keep_freed_memory.__code__ = refuse.__code__

def own():
    loggers = map(logging.getLogger, ("root", "tlray", "ray", "ray.data", "botocore"))
    return {
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "environment": dict(os.environ),
        "loggers": [(log.name, log.level, log.propagate, list(log.handlers)) for log in loggers],
        "filters": list(warnings.filters),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), faiss.omp_get_max_threads()),
        "precision": torch.get_float32_matmul_precision(),
        "memory": pa.default_memory_pool().backend_name,
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), str(random.getstate())),
        "grad": torch.is_grad_enabled(),
        "hooks": (sys.excepthook, threading.excepthook),
        "folder": os.getcwd(),
    }

def work():
    photos, folder, recipe = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    result = tlray.extract(photos, folder + "/table", labels="folder", local=True, **recipe)
    table = tlray.open(result.table)
    assert table.to_numpy().shape == (12, 96)
    tlray.build_index(table, folder + "/index")
    found = tlray.Index(folder + "/index").search(table.to_numpy("uri")[0], k=3)
    assert found[0].hits[0].uri == table.to_numpy("uri")[0]
    tlray.train(table, folder + "/model", epochs=5)
    tlray.train(source={"uri": photos, "labels": "folder"}, out=folder + "/network", labels="column", epochs=2, local=True,
                network={"freeze": "layer3"}, **recipe)
    tlray.Model(folder + "/network").predict(table.to_numpy("uri")[:2])
    tlray.predict(photos, folder + "/predictions", folder + "/model", local=True)
    table.encoder()(table.to_numpy("uri")[:3])
    table._repr_html_(), found._repr_html_()

async def cell():
    work()

torch.manual_seed(5)
before = own()
asyncio.run(cell())
after = own()
# Importing torch's compiler, which any use of torch may do, adds these itself.
after["environment"].pop("TORCHINDUCTOR_CACHE_DIR", None), before["environment"].pop("TORCHINDUCTOR_CACHE_DIR", None)
after["filters"] = [each for each in after["filters"] if "sympy" not in str(each)]
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 12)
    return tmp_path / "photos"


def test_a_notebook_works_and_keeps_what_is_its_own(photos: Path, tmp_path: Path) -> None:
    """In a fresh interpreter, without a cluster, inside a running event loop."""
    arguments = [sys.executable, "-c", NOTEBOOK, str(photos), str(tmp_path), json.dumps(RECIPE)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert not done.stderr, "nothing is shown to who has not asked for it"


def test_a_log_shows_what_a_run_says_to_who_asks(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tlray"):
        tlray.extract(photos, tmp_path / "t", local=True, **RECIPE)
    assert "12 listed, 12 new" in caplog.text


@pytest.mark.parametrize(
    "spelled",
    [
        {"labels": "folder", "pool": "max", "compute": "fp32", "crop": 96, "include": ["*0.jpg"]},
        {
            "source.labels": "folder",
            "recipe.pool": "max",
            "recipe.precision.compute": "fp32",
            "recipe.preprocessing.crop": 96,
            "source.include": ("*0.jpg",),
        },
        {
            "recipe": {"pool": "max", "precision": {"compute": "fp32"}, "preprocessing.crop": 96},
            "source": {"labels": "folder", "include": ["*0.jpg"]},
        },
        {
            "recipe": {"pool": "max"},
            "precision": {"compute": "fp32"},
            "preprocessing": {"crop": 96},
            "labels": "folder",
            "include": ["*0.jpg"],
        },
    ],
)
def test_python_flags_and_files_have_one_vocabulary(spelled: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    from tlray.api.keywords import config_of
    from tlray.config import ExtractConfig

    recipe = {key: value for key, value in RECIPE.items() if key != "compute"}
    words = {"table": tmp_path / "t"} | ({} if "source" in spelled else {"source.uri": photos})
    keys = {**spelled, **({"source": {**spelled["source"], "uri": photos}} if "source" in spelled else {}), **recipe}
    ours = config_of(ExtractConfig, words, keys)
    flags = ["--labels", "folder", "--pool", "max", "--compute", "fp32", "--crop", "96", "--include", "*0.jpg"]
    flags += [word for key, value in recipe.items() for word in (flag_of(key), value)]
    printed = command("extract", photos, tmp_path / "t", *flags, "--print-config").stdout
    assert yaml.safe_load(printed) == ours.model_dump(mode="json")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(keys, default=str))))
    assert config_of(ExtractConfig, words, {}, tmp_path / "job.yaml") == ours


@pytest.mark.parametrize(
    ("keys", "flags"),
    [
        ({"pool": "median"}, ["--pool", "median"]),
        ({"max_failed_fraction": "x"}, ["--max-failed-fraction", "x"]),
        ({"max_failed_fraction": 2}, None),
        ({"mean": [0.5]}, None),
        ({"weights_sha256": 5}, None),
        ({"recipe": {"precision": {"compute": "fp8"}}}, ["--recipe.precision.compute", "fp8"]),
    ],
)
def test_wrong_values_are_told_as_on_the_command_line(keys: dict[str, Any], flags: list[str] | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tlray.extract("photos", tmp_path / "t", "resnet18", **keys)
    assert ": expected" in str(caught.value)
    if flags is not None:
        said = error_of(command("extract", "photos", tmp_path / "t", "--backbone", "resnet18", *flags))
        assert said.endswith(str(caught.value))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: tlray.extract(),
            "are missing; give them as uri=, backbone= and table=",
        ),
        (lambda: tlray.extract("p", "t", bakbone="resnet18"), "unknown key bakbone; did you mean backbone"),
        (lambda: tlray.extract("p", "t", "a", source_labels="x"), "unknown key source_labels"),
        (lambda: tlray.extract("p", "t", "a", **{"source.uri": "q"}), "source.uri is given twice: 'p' and 'q'"),
        (lambda: tlray.extract("p", "t", "a", recipe={"backbone": "b"}), "recipe.backbone is given twice: 'a' and 'b'"),
        (lambda: tlray.extract({"labels": "folder"}, "t", "a"), "source.uri is missing"),
        (lambda: tlray.extract("p", "t", recipe="resnet18"), "recipe: expected a section with keys such as recipe.backbone"),
        (lambda: tlray.extract("p", "t", "a", config="/nowhere.yaml"), "cannot read --config /nowhere.yaml"),
        (lambda: tlray.train("t"), "out is missing; give it as out="),
        (lambda: tlray.train(out="m"), "table"),
        (lambda: tlray.predict("p", "o"), "--model"),
        (
            lambda: tlray.build_index("t", "i", metric="cosin"),
            "metric: expected one of cosine, ip, l2, given 'cosin'; did you mean",
        ),
    ],
)
def test_what_is_missing_or_unknown(call: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        call()


def test_arguments_win_over_the_file(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        yaml.safe_dump({"source": {"uri": str(photos), "include": ["*1.jpg"]}, "table": "elsewhere", "local": True})
    )
    result = tlray.extract(table=tmp_path / "t", config=file, **RECIPE)
    assert result.listed == 2 and result.table == f"file://{tmp_path}/t"


def test_objects_stand_for_their_places(made: Made, tmp_path: Path) -> None:
    table = tlray.open(made.table)
    assert tlray.build_index(table, made.index).action == "unchanged"
    result = tlray.predict(
        made.folder / "photos" / "dog", tmp_path / "p", tlray.Model(made.model), local=True, include=["*0.jpg"]
    )
    assert result.ok == 3 and len(tlray.open(result.table)) == 3


def test_results_are_the_commands_json(made: Made) -> None:
    arguments = ["extract", made.folder / "photos", made.table, "--labels", "folder", "--local", "--max-failed-fraction", "0.1"]
    arguments += [word for key, value in RECIPE.items() for word in (flag_of(key), value)]
    theirs = json.loads(command(*arguments).stdout)
    ours = tlray.extract(
        made.folder / "photos", made.table, labels="folder", local=True, max_failed_fraction=0.1, **RECIPE
    ).to_dict()
    assert list(ours) == list(theirs)
    assert {key: ours[key] for key in ("table", "version", "listed", "unchanged")} == {
        key: theirs[key] for key in ("table", "version", "listed", "unchanged")
    }


def test_errors_are_those_of_the_tree(photos: Path, tmp_path: Path) -> None:
    for number in range(3):
        (photos / f"bad{number}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(TooManyFailuresError):
        tlray.extract(photos, tmp_path / "t", local=True, max_failed_fraction=0, **RECIPE)
    assert tlray.errors.TooManyFailuresError is TooManyFailuresError
    assert issubclass(TooManyFailuresError, tlray.errors.TlrayError)
