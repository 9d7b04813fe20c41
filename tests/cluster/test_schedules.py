"""The schedules in cluster/: manifests against KubeRay's schemas, shell lines and the DAG's task executed."""

import fcntl
import json
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.schemas import ROOT, schema_of, schema_problems
from tests.photos import write_photos

CLUSTER = ROOT / "cluster"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class TestRayCronJob:
    def test_it_is_one_that_kuberay_takes(self) -> None:
        (job,) = documents("raycronjob-extract.yaml")
        assert schema_problems(job, schema_of("raycronjobs")) == []
        job["spec"]["concurrencyPolicy"] = "Forbid"
        assert "concurrencyPolicy" in " ".join(schema_problems(job, schema_of("raycronjobs")))

    def test_its_job_is_the_rayjob(self) -> None:
        (cron_job,) = documents("raycronjob-extract.yaml")
        _, job = documents("rayjob-extract.yaml")
        assert cron_job["spec"]["jobTemplate"] == job["spec"]
        assert len(cron_job["spec"]["schedule"].split()) == 5


class TestCronJob:
    @pytest.fixture
    def cron_job(self) -> dict[str, Any]:
        return documents("cronjob-extract.yaml")[-1]

    def test_its_pod_is_one_that_kubernetes_takes(self, cron_job: dict[str, Any]) -> None:
        """Against the pod template in KubeRay's schema of the RayJob, which is Kubernetes' own."""
        pod_schema = schema_of("rayjobs")["properties"]["spec"]["properties"]["submitterPodTemplate"]
        assert schema_problems(cron_job["spec"]["jobTemplate"]["spec"]["template"], pod_schema) == []

    def test_who_it_runs_as_may_do_what_it_does(self, cron_job: dict[str, Any]) -> None:
        account, role, binding, _ = documents("cronjob-extract.yaml")
        pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        names = {account["metadata"]["name"], binding["subjects"][0]["name"], pod["serviceAccountName"]}
        assert names == {"tlray-nightly"} and binding["roleRef"]["name"] == role["metadata"]["name"]
        allowed = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
        assert allowed["rayjobs"] >= {"get", "create", "delete", "patch", "watch"}
        assert allowed["configmaps"] >= {"get", "create", "patch"}
        kinds = {document["kind"].lower() + "s" for document in documents("rayjob-extract.yaml")}
        assert kinds == set(allowed)

    def test_only_what_going_on_helps_is_repeated(self, cron_job: dict[str, Any]) -> None:
        spec = cron_job["spec"]["jobTemplate"]["spec"]
        (rule,) = spec["podFailurePolicy"]["rules"]
        assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2, 3])
        (container,) = spec["template"]["spec"]["containers"]
        assert (
            rule["onExitCodes"]["containerName"] == container["name"] and spec["template"]["spec"]["restartPolicy"] == "Never"
        )


class TestCrontab:
    @pytest.fixture
    def line(self) -> str:
        lines = (CLUSTER / "crontab").read_text(encoding="utf-8").splitlines()
        (line,) = (line for line in lines if line and not re.match(r"#|\w+=", line))
        assert "%" not in line, "cron would end the command there"
        return line.split(maxsplit=5)[5]

    def run(self, line: str, home: Path, *folders: Path) -> subprocess.CompletedProcess[str]:
        path = ":".join(map(str, [*folders, sysconfig.get_path("scripts"), "/usr/bin", "/bin"]))
        environment = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True)

    def test_each_night_adds_a_line_of_json(self, line: str, tmp_path: Path) -> None:
        write_photos(tmp_path / "photos", 5)
        recipe = {"backbone": "timm:test_resnet", "weights": "random:7", "precision": {"compute": "fp32"}}
        config = {"source": {"uri": str(tmp_path / "photos")}, "recipe": recipe, "table": str(tmp_path / "t"), "local": True}
        (tmp_path / "photos.yaml").write_text(yaml.safe_dump(config))
        first = self.run(line, tmp_path)
        assert (first.returncode, first.stdout) == (0, ""), (first.stdout, (tmp_path / "photos.log").read_text())
        (tmp_path / "photos" / "bad.jpg").write_bytes(b"bad")
        second = self.run(line, tmp_path)
        assert second.stdout == "tlray extract of photos ended with 3\n", "what cron mails"
        (night,) = map(json.loads, (tmp_path / "photos.jsonl").read_text().splitlines())
        assert (night["new"], night["ok"]) == (5, 5)
        assert "5 new" in (tmp_path / "photos.log").read_text()

    def test_without_tlray_it_says_what_to_mend(self, line: str, tmp_path: Path) -> None:
        """In the environment that cron gives, with the lines above it: none of its folders has tlray here."""
        text = (CLUSTER / "crontab").read_text(encoding="utf-8")
        (path,) = re.findall(r"^PATH=(.+)$", text, re.MULTILINE)
        assert path.split(":")[0].endswith("/bin") and {"/usr/bin", "/bin"} <= set(path.split(":"))
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        outcome = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True)
        assert outcome.returncode == 1 and "mend that line" in outcome.stdout, "what cron mails"
        assert "mend that line" in (tmp_path / "photos.log").read_text()

    def test_a_night_that_is_still_at_work_is_left_alone(self, line: str, tmp_path: Path) -> None:
        with (tmp_path / "photos.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            outcome = self.run(line, tmp_path)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")
        assert not (tmp_path / "photos.jsonl").read_text()

    def test_a_night_that_takes_too_long_is_told_to_end(self, line: str, tmp_path: Path) -> None:
        stub(tmp_path, "tlray", f"trap 'exit 4' TERM; touch {tmp_path}/began; sleep 600 & wait")
        assert " 6h " in line
        for seconds in (0.3, 3, 30):  # the first that is enough for it to begin
            outcome = self.run(line.replace(" 6h ", f" {seconds} "), tmp_path, tmp_path)
            if (tmp_path / "began").exists():
                break
        assert outcome.stdout == "tlray extract of photos ended with 4\n"


class TestAirflow:
    """The DAG with stand-ins for Airflow's decorators and errors, whose package would bring a hundred others."""

    @pytest.fixture
    def extract(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
        tasks: list[Callable[[], dict[str, Any]]] = []

        def task(**options: Any) -> Callable[[Any], Any]:
            assert options["retries"] > 0
            return lambda function: tasks.append(function) or (lambda: None)

        sdk, errors = types.ModuleType("airflow.sdk"), types.ModuleType("airflow.sdk.exceptions")
        sdk.dag = lambda **options: lambda function: function  # type: ignore[attr-defined]
        sdk.task = task  # type: ignore[attr-defined]
        errors.AirflowException = type("AirflowException", (Exception,), {})  # type: ignore[attr-defined]
        errors.AirflowFailException = type("AirflowFailException", (Exception,), {})  # type: ignore[attr-defined]
        for name, module in {
            "airflow": types.ModuleType("airflow"),
            "airflow.sdk": sdk,
            "airflow.sdk.exceptions": errors,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)
        runpy.run_path(str(CLUSTER / "airflow_dag.py"))
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        (found,) = tasks
        return found

    def test_the_result_is_the_line_of_json(self, extract: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
        stub(tmp_path, "tlray", """echo progress >&2; echo '{"ok": 3}'""")
        assert extract() == {"ok": 3}

    @pytest.mark.parametrize(("code", "error"), [(1, ""), (2, "Fail"), (3, "Fail"), (4, ""), (130, "")])
    def test_only_what_going_on_helps_is_repeated(
        self, code: int, error: str, extract: Callable[[], dict[str, Any]], tmp_path: Path
    ) -> None:
        stub(tmp_path, "tlray", f"exit {code}")
        with pytest.raises(Exception, match=f"exit code {code}") as caught:
            extract()
        assert type(caught.value).__name__ == f"Airflow{error}Exception"
