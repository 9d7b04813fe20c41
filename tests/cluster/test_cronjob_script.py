"""The script of the CronJob's pod, with a `kubectl` that plays a RayJob through its states and writes down what it was told."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.schemas import ROOT

SUCCEEDED = "SUCCEEDED Job finished successfully."
FAILED_3 = "FAILED Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars): x"

KUBECTL = """#!/bin/sh
# Each question about the state takes the next line of `states`, the last one for ever; `-` is none yet, `!` a failure.
cd {folder}
echo "$*" >>calls
case "$*" in
    get*"--output name"*) test -e there && echo rayjob.ray.io/tlray-extract; exit 0 ;;
    delete*) rm -f there ;;
    apply*) touch there ;;
    get*jobDeploymentStatus*)
        state=$(head -n 1 states)
        test "$(wc -l <states)" -gt 1 && sed -i 1d states
        case $state in
            !) echo "Unable to connect to the server: net/http: TLS handshake timeout" >&2; exit 1 ;;
            -) ;;
            *) printf %s "$state" ;;
        esac ;;
    get*jobStatus*) printf %s "{said}" ;;
    get*status.message*) printf %s "spec.entrypoint: too long" ;;
esac
"""


@dataclass(frozen=True)
class Night:
    code: int
    stdout: str
    stderr: str
    calls: list[str]

    def did(self, verb: str) -> bool:
        return any(call.startswith(verb) for call in self.calls)


def night(folder: Path, *states: str, said: str = SUCCEEDED, is_there: bool = False, **limits: str) -> Night:
    """What the pod does of a night in which the RayJob goes through these states."""
    document = list(yaml.safe_load_all((ROOT / "cluster" / "cronjob-extract.yaml").read_text(encoding="utf-8")))[-1]
    (container,) = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    (folder / "calls").write_text("")
    if is_there:
        (folder / "there").touch()
    kubectl = folder / "kubectl"
    kubectl.write_text(KUBECTL.format(folder=folder, said=said))
    kubectl.chmod(0o755)
    process = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "POLL_SECONDS": "0", **limits},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Night(process.returncode, process.stdout, process.stderr, (folder / "calls").read_text().splitlines())


@pytest.mark.parametrize(
    ("end", "said", "code"),
    [
        ("Complete", SUCCEEDED, 0),
        ("Failed", FAILED_3, 3),
        ("Complete", "FAILED Job entrypoint command failed with exit code 4. No logs available.", 4),
        ("Failed", "FAILED The head pod was deleted", 1),
        ("Failed", " activeDeadlineSeconds exceeded", 1),
    ],
)
def test_it_ends_as_the_rayjob_does(end: str, said: str, code: int, tmp_path: Path) -> None:
    seen = night(tmp_path, "-", "Initializing", "Waiting", "Running", "Running", end, said=said)
    assert (seen.code, seen.stdout.rstrip()) == (code, said.rstrip())
    assert seen.did("apply") and not seen.did("delete")
    manifest = next(call for call in seen.calls if call.startswith("apply"))
    assert manifest == "apply --filename /etc/tlray/rayjob.yaml"


@pytest.mark.parametrize("left", ["Complete", "Failed", "ValidationFailed"])
def test_what_an_earlier_night_left_is_taken_away(left: str, tmp_path: Path) -> None:
    seen = night(tmp_path, left, "Running", "Complete", is_there=True)
    assert seen.code == 0
    verbs = [call.split()[0] for call in seen.calls]
    assert verbs.index("delete") < verbs.index("apply")


@pytest.mark.parametrize(
    "state", ["-", "Initializing", "Waiting", "Running", "Retrying", "Suspended", "Suspending", "Scheduling"]
)
def test_a_run_under_way_is_followed_and_never_deleted(state: str, tmp_path: Path) -> None:
    seen = night(tmp_path, state, state, "Running", "Complete", is_there=True)
    assert seen.code == 0 and not seen.did("delete")
    assert "following it" in seen.stderr


@pytest.mark.parametrize("is_there", [False, True])
def test_an_api_server_with_a_hiccup_is_asked_again(is_there: bool, tmp_path: Path) -> None:
    seen = night(tmp_path, "!", "!", "Running", "!", "Running", "!", "!", "Complete", is_there=is_there)
    assert (seen.code, seen.stdout.strip()) == (0, SUCCEEDED)
    assert not seen.did("delete")


def test_an_api_server_that_is_gone_ends_the_pod_and_not_the_run(tmp_path: Path) -> None:
    seen = night(tmp_path, "Running", "!", MOST_FAILURES="5")
    assert seen.code == 1 and "left to itself" in seen.stderr and not seen.did("delete")
    assert sum("jobDeploymentStatus" in call for call in seen.calls) == 6


def test_a_wrong_manifest_waits_for_a_person(tmp_path: Path) -> None:
    seen = night(tmp_path, "-", "ValidationFailed")
    assert seen.code == 2 and "spec.entrypoint: too long" in seen.stdout
    assert not seen.did("delete")


@pytest.mark.parametrize("state", ["-", "Initializing", "Waiting", "Suspended", "Pending"])
def test_nodes_that_never_come_end_the_night(state: str, tmp_path: Path) -> None:
    seen = night(tmp_path, state, MOST_WAITS="7")
    assert seen.code == 1 and "has not started" in seen.stdout and not seen.did("delete")


def test_a_long_run_is_waited_for_without_a_limit_of_its_own(tmp_path: Path) -> None:
    seen = night(tmp_path, *["Initializing"] * 5, *["Running"] * 40, *["Retrying"] * 5, "Complete", MOST_WAITS="7")
    assert seen.code == 0


def test_its_limits_are_what_is_said_of_them() -> None:
    text = (ROOT / "cluster" / "cronjob-extract.yaml").read_text(encoding="utf-8")
    defaults = {name: int(value) for name, value in re.findall(r"\$\{(\w+):-(\d+)\}", text)}
    assert defaults["MOST_WAITS"] * defaults["POLL_SECONDS"] == 2 * 3600 and "waits two hours" in text
    assert defaults["MOST_FAILURES"] * defaults["POLL_SECONDS"] == 1800 and "for half an hour" in text
