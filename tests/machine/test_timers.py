"""What a process has of its machine."""

import ctypes
import sys
import threading

import pytest

from tlray.machine.timers import late_timers

PR_GET_TIMERSLACK = 30


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_timers_of_a_thread_and_of_those_that_it_starts_are_late_for_a_while() -> None:
    prctl, found = ctypes.CDLL(None).prctl, list[int]()
    before = prctl(PR_GET_TIMERSLACK)
    with late_timers(0.25):
        threads = [threading.Thread(target=lambda: found.append(prctl(PR_GET_TIMERSLACK))) for _ in range(2)]
        threads[0].start()
        found.append(prctl(PR_GET_TIMERSLACK))
        threads[0].join()
    threads[1].start()
    threads[1].join()
    assert found == [250_000_000, 250_000_000, before]
    assert prctl(PR_GET_TIMERSLACK) == before != 250_000_000
