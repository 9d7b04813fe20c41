"""The RayJob and its image: against KubeRay's schema, our own jobs and configs, and the pinned Ray."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.schemas import ROOT, schema_of, schema_problems
from tlray.config import ExtractConfig
from tlray.config_reader import read_config

MANIFEST = ROOT / "cluster" / "rayjob-extract.yaml"


@pytest.fixture(scope="module")
def rayjob_schema() -> dict[str, Any]:
    return schema_of("rayjobs")


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, job = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    return config_map, job


def test_the_rayjob_is_one_that_kuberay_takes(rayjob_schema: dict[str, Any]) -> None:
    _, job = manifest()
    assert schema_problems(job, rayjob_schema) == []


def test_a_misspelt_field_would_be_found(rayjob_schema: dict[str, Any]) -> None:
    _, job = manifest()
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["template"]["spec"]["containers"][0]["imagee"] = "x"
    group["minReplicas"] = "two"
    problems = " ".join(schema_problems(job, rayjob_schema))
    assert "imagee" in problems and "'two'" in problems


def test_the_rayjob_runs_our_job_with_a_config_that_is_read(tmp_path: Path) -> None:
    config_map, job = manifest()
    file = tmp_path / "job.yaml"
    file.write_text(config_map["data"]["job.yaml"])
    assert read_config(ExtractConfig, {}, file=file).table.startswith("s3://")
    python, script, flag, path = job["spec"]["entrypoint"].split()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert (python, flag, path) == ("python", "--config", f"{mount['mountPath']}/job.yaml")
    assert head["volumes"] == [{"name": mount["name"], "configMap": {"name": config_map["metadata"]["name"]}}]
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    (work_folder,) = re.findall(r"^WORKDIR (.+)$", dockerfile, re.MULTILINE)
    assert (ROOT / script.removeprefix(work_folder + "/")).exists()


def test_the_cluster_runs_the_pinned_ray() -> None:
    _, job = manifest()
    (pinned,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_the_image_is_made_of_files_that_exist_and_runs_as_a_user() -> None:
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] != "root"
