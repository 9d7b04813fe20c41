"""When Python looks for garbage."""

import gc
import threading
import weakref

import pytest

from tlray.machine.garbage import without_collecting


class _Ring:
    def __init__(self) -> None:
        self.me = self


def collections_in(block: list[int]) -> None:
    """Make more objects than Python lets be made without a look for garbage."""
    gc.callbacks.append(watch := lambda phase, info: block.append(info["generation"]) if phase == "start" else None)
    try:
        assert len([[] for _ in range(20 * gc.get_threshold()[0])]) > 0
    finally:
        gc.callbacks.remove(watch)


def test_nothing_is_collected_within_and_all_of_it_afterwards() -> None:
    found: list[int] = []
    frozen = gc.get_freeze_count()
    with without_collecting():
        ring = weakref.ref(_Ring())
        collections_in(found)
        assert found == [] and ring() is not None
    collections_in(found)
    assert found  # it goes on as before
    gc.collect()
    assert ring() is None and gc.get_freeze_count() <= frozen


def test_what_is_loaded_is_not_looked_at_again_soon() -> None:
    gc.collect()
    with without_collecting():
        kept = [[] for _ in range(100_000)]
    assert sum(len(gc.get_objects(generation)) for generation in (0, 1)) < len(kept)


def test_what_the_program_has_frozen_stays_so() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with without_collecting():
            pass
        assert gc.isenabled() and gc.get_freeze_count() > 0.9 * frozen
    finally:
        gc.unfreeze()


def test_an_error_within_another_block_and_a_process_that_collects_nothing() -> None:
    with pytest.raises(ZeroDivisionError), without_collecting():
        with without_collecting():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the outer block has not ended
        1 / 0  # noqa: B018
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_blocks_of_two_threads() -> None:
    within, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with without_collecting():
            within.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        within.wait()
        with without_collecting():
            pass
        assert not gc.isenabled()
    finally:
        leave.set()
        thread.join()
    assert gc.isenabled()
