"""How threads that share a computation wait for each other."""

import os
import subprocess
import sys

import pytest

from tlray.machine.threads import SPINS, yield_cores

BUSY = "while True: pass"

COMPUTE = """
import sys, time
if sys.argv[1] == "yielding":
    from tlray.machine.threads import yield_cores
    yield_cores()
import torch
torch.set_num_threads(2)
x = torch.rand(512, 512)
def rounds(seconds):
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(20):
            torch.relu_(x)
        count += 1
    return count
rounds(0.2)
print(rounds(2))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, str(SPINS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_the_user_says_counts(given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    yield_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="two cores; taskset")
def test_beside_other_work_threads_leave_their_cores_to_whom_they_wait_for() -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}

    def started(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = ["taskset", "--cpu-list", "0,1", sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)

    def rounds(how: str) -> int:
        return int(started(COMPUTE, how).communicate(timeout=120)[0])

    others = [started(BUSY) for _ in range(2)]
    try:
        assert rounds("yielding") > 2 * rounds("as it is")
    finally:
        for other in others:
            other.kill()
            other.communicate()
