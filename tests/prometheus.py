"""A real Prometheus on loopback, and its promtool; what needs them is skipped where they are not installed."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from tests.cluster.schemas import ROOT
from tests.ray_cluster import free_ports

MONITORING = ROOT / "cluster" / "monitoring"
PATIENCE_SECONDS = 300


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine: install Debian's package prometheus (`make prometheus`)")
    return found


def panels() -> list[dict[str, Any]]:
    return json.loads((MONITORING / "grafana.json").read_text())["panels"]


def queries() -> list[str]:
    """Those of the dashboard, as Grafana sends them when all runs are shown."""
    return [target["expr"].replace("$run", ".*") for panel in panels() for target in panel["targets"]]


class Prometheus:
    """Scrapes some places each second, by the configuration of cluster/monitoring with those in place of its own.

    Args:
        folder: for its data.
        job: of the configuration: `ray` or `tlray`.
        place: of the job: the service-discovery file, or a host and port.
    """

    def __init__(self, folder: Path, job: str, place: str) -> None:
        self._folder, (self._port,) = folder, free_ports(1)
        self._program = program("prometheus")
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        (scraped,) = (each for each in config["scrape_configs"] if each["job_name"] == job)
        if job == "ray":
            scraped["file_sd_configs"] = [{"files": [place], "refresh_interval": "1s"}]
        else:
            scraped["static_configs"] = [{"targets": [place]}]
        rules = [str(MONITORING / name) for name in config["rule_files"]]
        seconds = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (folder / "prometheus.yml").write_text(
            yaml.safe_dump({"global": seconds, "rule_files": rules, "scrape_configs": [scraped]})
        )

    def __enter__(self) -> Self:
        self._log = (self._folder / "prometheus.log").open("wb")
        arguments = [
            "prometheus.yml",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._process = subprocess.Popen(
            [self._program, f"--config.file={arguments[0]}", *arguments[1:]],
            cwd=self._folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def get(self, path: str) -> Any:
        """What the HTTP API answers."""
        with urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}", timeout=60) as answer:
            body = json.load(answer)
        assert body["status"] == "success" and not body.get("warnings"), body
        return body["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that a query gives now."""
        found = self.get(f"query?query={quote(expression)}")
        assert found["resultType"] == "vector"
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def wait(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Wait until a query gives something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()[-3000:]
            try:
                if found := self.query(expression):
                    return found
            except HTTPError as error:
                if error.code != 503:  # as it says until it is ready
                    raise AssertionError(f"{expression}: {error.read().decode()}") from error
            except URLError:  # it is not there yet
                pass
            time.sleep(0.2)
        raise AssertionError(f"Prometheus never had {expression}: {self.get('targets')}")
