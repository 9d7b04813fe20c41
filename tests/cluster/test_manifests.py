"""What is in cluster/ beside the RayJob and the schedules: each file held against the schema of who reads it."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from tests.cluster.schemas import ROOT, closed, schema_of, schema_problems
from tlray.cli.flags import parse
from tlray.commands import COMMANDS
from tlray.config import ServeConfig
from tlray.config_reader import read_config

CLUSTER = ROOT / "cluster"
KUBERNETES = CLUSTER / "kubernetes"
JOBS = ("train", "predict", "index")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def one(name: str) -> dict[str, Any]:
    (document,) = documents(KUBERNETES / name)
    return document


def cluster_specs() -> dict[str, dict[str, Any]]:
    """Every Ray cluster that a manifest makes."""
    return {
        "rayjob": documents(CLUSTER / "rayjob-extract.yaml")[1]["spec"]["rayClusterSpec"],
        "raycluster": one("raycluster.yaml")["spec"],
        "rayservice": one("rayservice-search.yaml")["spec"]["rayClusterConfig"],
    }


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("raycluster.yaml", "rayclusters"),
        ("rayservice-search.yaml", "rayservices"),
        *((f"rayjob-{job}.yaml", "rayjobs") for job in JOBS),
    ],
)
def test_kuberay_takes_it(name: str, plural: str) -> None:
    assert schema_problems(one(name), schema_of(plural)) == []


@pytest.mark.parametrize("which", ["rayjob", "raycluster", "rayservice"])
def test_every_cluster_is_locked_and_runs_nothing_on_its_head_as_root_or_with_keys(which: str) -> None:
    spec = cluster_specs()[which]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (pinned,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == pinned
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and pod["serviceAccountName"] == "tlray-extract"
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert not any("KEY" in each["name"] or "SECRET" in each["name"] for each in container.get("env", []))
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_nothing_waits_for_ever() -> None:
    job = documents(CLUSTER / "rayjob-extract.yaml")[1]["spec"]
    assert 0 < job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]
    pod = documents(CLUSTER / "cronjob-extract.yaml")[-1]["spec"]["jobTemplate"]["spec"]
    assert pod["activeDeadlineSeconds"] > job["activeDeadlineSeconds"]
    assert all(one(f"rayjob-{name}.yaml")["spec"]["activeDeadlineSeconds"] > 0 for name in JOBS)


def test_the_cluster_that_stays_grows_onto_spot_machines() -> None:
    spec = cluster_specs()["raycluster"]
    assert spec["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"gpu", "decode"}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        assert {"gke-spot", "scalesetpriority", "spot"} <= {
            each["key"].rpartition("/")[2] for each in group["template"]["spec"]["tolerations"]
        }


@pytest.mark.parametrize("name", JOBS)
def test_a_job_on_the_cluster_is_a_command_that_is_understood(name: str) -> None:
    spec = one(f"rayjob-{name}.yaml")["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": one("raycluster.yaml")["metadata"]["name"]}
    python, script, *arguments = spec["entrypoint"].split()
    assert (python, script) == ("python", f"/opt/tlray/jobs/{name}.py")
    assert (ROOT / "jobs" / f"{name}.py").exists()
    line = parse(name, COMMANDS[name], arguments)
    read_config(COMMANDS[name].config, line.given, file=line.config)
    (container,) = spec["submitterPodTemplate"]["spec"]["containers"]
    env = {each["name"]: each for each in container["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "tlray", "key": "auth_token"}


def test_drivers_that_only_direct_are_on_the_head_and_those_that_compute_are_where_there_are_cores() -> None:
    """Ray has a job's command on the head unless it asks for resources, of which the head here has none."""
    groups = one("raycluster.yaml")["spec"]["workerGroupSpecs"]
    cores = [int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) for group in groups]
    asks = ("entrypointNumCpus", "entrypointNumGpus", "entrypointResources")
    specs = {name: one(f"rayjob-{name}.yaml")["spec"] for name in JOBS}
    specs["extract"] = documents(CLUSTER / "rayjob-extract.yaml")[1]["spec"]
    asked = {name: {key: spec[key] for key in asks if key in spec} for name, spec in specs.items()}
    assert asked["extract"] == asked["predict"] == {}
    said = (CLUSTER / "README.md").read_text().partition("**Where the driver is.**")[2].partition("- **")[0]
    for name in ("train", "index"):
        assert 0 < asked[name].pop("entrypointNumCpus") <= min(cores) and not asked[name]
        assert f"`rayjob-{name}.yaml`" in said


def test_the_service_is_an_application_with_keys_of_its_config() -> None:
    spec = one("rayservice-search.yaml")["spec"]
    (app,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    module, _, name = app["import_path"].partition(":")
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    assert f"def {name}(keys: dict[str, Any])" in source
    config = ServeConfig(**app["args"])
    (volume,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (mount,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert config.token_file == f"{mount['mountPath']}/token" and volume["secret"]["secretName"] == "tlray-search"


def test_accounts_exist_and_the_ports_are_closed_to_others() -> None:
    """The rules against those of KubeRay's own `networkPolicy`, which are Kubernetes'."""
    access = documents(KUBERNETES / "access.yaml")
    accounts = {each["metadata"]["name"] for each in access if each["kind"] == "ServiceAccount"}
    jobs = [one(f"rayjob-{name}.yaml")["spec"]["submitterPodTemplate"]["spec"]["serviceAccountName"] for name in JOBS]
    assert accounts == {"tlray-extract", *jobs}
    (policy,) = (each for each in access if each["kind"] == "NetworkPolicy")
    head = schema_of("rayclusters")["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]
    rules = closed(head)["properties"]["ingressRules"]
    assert schema_problems(policy["spec"]["ingress"], rules) == []
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    to_all = [rule for rule in policy["spec"]["ingress"] if "ports" not in rule]
    assert [rule["from"] for rule in to_all] == [[{"podSelector": policy["spec"]["podSelector"]}]]


def test_rays_launcher_takes_the_cluster_of_aws() -> None:
    config = yaml.safe_load((CLUSTER / "machines" / "aws.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "idle_timeout": 5}, schema)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and config["head_node_type"] == "head"
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "RAY_AUTH_MODE=token" in " ".join(config["docker"]["run_options"])


def test_awss_policy_gives_no_more_than_is_needed() -> None:
    policy = json.loads((CLUSTER / "machines" / "aws-policy.json").read_text())
    actions = [
        action
        for each in policy["Statement"]
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    ]
    assert all(re.fullmatch(r"s3:[A-Za-z]+", action) for action in actions)
    writes = [each for each in policy["Statement"] if "s3:PutObject" in each["Action"]]
    assert [each["Resource"] for each in writes] == [["arn:aws:s3:::lake/*"]]


@pytest.mark.parametrize("name", ["slurm.sbatch"])
def test_a_shell_script_is_one(name: str) -> None:
    path = CLUSTER / "machines" / name
    assert subprocess.run(["sh", "-n", path], capture_output=True).returncode == 0
    assert "RAY_AUTH_MODE=token" in path.read_text() and "symmetric-run" in path.read_text()


def test_the_image_has_extras_and_a_compiler_and_no_more_than_it_needs() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    known = set(
        re.findall(
            r"^(\w+) = \[",
            (ROOT / "pyproject.toml")
            .read_text()
            .partition("[project.optional-dependencies]")[2]
            .partition("[project.scripts]")[0],
            re.MULTILINE,
        )
    )
    assert {"serve", "onnx"} <= set(re.findall(r"--extra (\w+)", text)) <= known
    assert "g++" in text
    copied = {source for line in text.splitlines() if line.startswith("COPY ") for source in line.split()[1:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in


def test_the_slim_image_is_made_of_packages_for_cpus(tmp_path: Path) -> None:
    """The image's own `sed` on copies of the two files."""
    for name in ("pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    joined = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    edits = re.findall(r"sed -i .*? (?:pyproject\.toml|requirements\.txt)", joined)
    assert len(edits) == 2
    for edit in edits:
        subprocess.run(["sh", "-c", edit], cwd=tmp_path, check=True)
    project, pins = (tmp_path / "pyproject.toml").read_text(), (tmp_path / "requirements.txt").read_text()
    assert "faiss-gpu" not in project + pins and re.search(r'"faiss-cpu>=[\d.]+"', project)
    assert not re.search(r"^(nvidia|triton|faiss-gpu)", pins, re.MULTILINE)
    assert re.search(r"^faiss-cpu==[\d.]+$", pins, re.MULTILINE) and re.search(r"^torch==", pins, re.MULTILINE)
