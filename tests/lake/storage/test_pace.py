"""The pace of requests in simulated time, against stores that take so many requests a second and no more."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tlray.lake.storage.retry import Pace, draw_pause

SECONDS = 120.0
ANSWER_SECONDS = 0.02
REFUSAL_SECONDS = 0.005


@dataclass
class Store:
    """Takes at most `capacity(now)` requests in any second, and says "slow down" to the others.

    Attributes:
        taken: when it took one, those of the last second.
        counts: taken and refused, from the tenth second on.
    """

    capacity: Callable[[float], float]
    taken: deque[float] = field(default_factory=deque)
    counts: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def takes(self, now: float) -> bool:
        while self.taken and self.taken[0] <= now - 1:
            self.taken.popleft()
        is_taken = len(self.taken) < self.capacity(now)
        if is_taken:
            self.taken.append(now)
        self.counts[is_taken] += now > 10
        return is_taken


def simulate(store: Store, paces: list[Pace], threads: int) -> tuple[float, float]:
    """Threads of several processes that ask as fast as they may, and pause after a refusal as `Attempts` does.

    Returns:
        Requests a second that the store took, and the fraction that it refused.
    """
    random.seed(1)
    events = [(0.0, number, "ready", 0.0) for number in range(threads * len(paces))]
    refusals = [0] * len(events)
    while (event := heapq.heappop(events))[0] < SECONDS:
        now, number, what, began = event
        pace = paces[number % len(paces)]
        if what == "ready":
            start = pace.reserve(now)
            heapq.heappush(events, (start, number, "start", start))
        elif what == "refused":
            pace.slow_down(began, now)
            heapq.heappush(events, (now + draw_pause(refusals[number]), number, "ready", 0.0))
        elif store.takes(now):
            refusals[number] = 0
            heapq.heappush(events, (now + ANSWER_SECONDS, number, "ready", 0.0))
        else:
            refusals[number] += 1
            heapq.heappush(events, (now + REFUSAL_SECONDS, number, "refused", now))
    taken, refused = store.counts[True], store.counts[False]
    return taken / (SECONDS - 10), refused / (taken + refused)


@pytest.mark.parametrize("capacity", [40, 200, 700])
@pytest.mark.parametrize(("threads", "processes"), [(4, 1), (16, 1), (64, 1), (16, 5)])
def test_most_of_what_a_store_takes_is_used_and_little_is_refused(capacity: int, threads: int, processes: int) -> None:
    can_use = min(capacity, processes * threads / ANSWER_SECONDS)
    rate, refused = simulate(Store(lambda now: capacity), [Pace() for _ in range(processes)], threads)
    print(f"{rate / can_use:.2f} of it used, {refused:.3f} refused")
    assert rate > can_use / 2, "within a factor of two of what it takes"
    assert refused < 0.15


def test_a_store_that_is_busy_for_a_while_is_used_again_when_it_is_not() -> None:
    """It takes 400 a second, but 20 in every other half minute: 210 on average."""
    rate, refused = simulate(Store(lambda now: 20 if now // 30 % 2 else 400), [Pace()], 16)
    assert rate > 210 / 2 and refused < 0.05


def rate_of(pace: Pace, now: float) -> float:
    """Requests a second that start from now on."""
    starts = [pace.reserve(now) for _ in range(6)]
    return 5 / (starts[-1] - starts[0]) if starts[-1] > starts[0] else float("inf")


def asked(count: int, now: float) -> Pace:
    """One at which so many requests started within the second before."""
    pace = Pace()
    for number in range(count):
        assert pace.reserve(now - 0.9 + number / count * 0.8) <= now
    return pace


def test_the_rate_falls_once_a_second_and_comes_back() -> None:
    now = 1000.0
    pace = asked(100, now)
    for _ in range(32):
        pace.slow_down(now - 0.01, now)
    assert rate_of(pace, now) == pytest.approx(70, rel=0.01)
    pace.slow_down(now - 10, now + 2)
    assert rate_of(pace, now + 2) > 70, "that request was under way before"
    assert rate_of(pace, now + 4.2) == pytest.approx(100, rel=0.01), "botocore's curve: (100 * 0.3 / 0.4) ** (1 / 3) s"
    assert rate_of(pace, now + 20) == float("inf")


def test_at_least_one_request_in_two_seconds() -> None:
    pace, now = asked(3, 1000.0), 1000.0
    for _ in range(30):
        pace.slow_down(now, now)
        now += 1.5
    assert rate_of(pace, now) > 0.3
    assert rate_of(pace, now + 60) == float("inf")
