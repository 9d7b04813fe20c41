"""What threads of a library's user see of the process while tlray computes in others, and afterwards."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from tlray.models.process.device import precision, threads_of_one_core
from tlray.models.process.shared_change import SharedChange


def overlapping(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[str]:
    """Two threads of which the second one comes while the first is there, and goes after it; stops at each step."""
    go, came = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]

    def stay(context: AbstractContextManager[None], enter: int, leave: int) -> None:
        go[enter].wait()
        with context:
            came[enter].set()
            go[leave].wait()
        came[leave].set()

    threads = [threading.Thread(target=stay, args=(first, 0, 2)), threading.Thread(target=stay, args=(second, 1, 3))]
    for thread in threads:
        thread.start()
    for step, name in enumerate(("first came", "second came", "first left", "both left")):
        go[step].set()
        assert came[step].wait(10)
        yield name
    for thread in threads:
        thread.join()


def test_a_change_is_there_as_long_as_one_thread_needs_it() -> None:
    state = ["as found"]

    @contextmanager
    def change() -> Iterator[None]:
        before, state[0] = state[0], "changed"
        try:
            yield
        finally:
            state[0] = before

    shared = SharedChange(change)
    assert [state[0] for _ in overlapping(shared, shared)] == ["changed", "changed", "changed", "as found"]


def test_a_change_that_fails_is_none() -> None:
    @contextmanager
    def change() -> Iterator[None]:
        raise ValueError("cannot be")
        yield

    shared = SharedChange(change)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be"), shared:
            pass


def test_fp32_stays_fp32_when_another_thread_is_done() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        cpu, seen = torch.device("cpu"), []
        for _ in overlapping(precision(cpu, "fp32"), precision(cpu, "bf16")):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        assert seen == [("highest", False)] * 3 + [("medium", True)]
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def threads_after_work() -> int:
    torch.ones(300, 300) @ torch.ones(300, 300)
    return torch.get_num_threads()


def test_threads_of_one_core_leave_the_others_theirs() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pool = threads_of_one_core(2, "x")
        torch.ones(300, 300) @ torch.ones(300, 300)
        found = [future.result() for future in [pool.submit(threads_after_work) for _ in range(4)]]
        with ThreadPoolExecutor(1) as others:
            assert found == [1] * 4 and torch.get_num_threads() == others.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
