"""Trials: when they are given up, and that they end with the minutes and leave the network's clockwork as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.advice.pictures import CANDIDATES, SIZE, write_stripes
from tlray.advice.inputs.candidates import find_candidates
from tlray.advice.inputs.sample import take_sample
from tlray.advice.measuring.trials import Attempt, Try
from tlray.advice.measuring.watch import Watch
from tlray.config import AdviseConfig

HEAD = np.arange(100) < 90


def looked_at(*accuracies: float, epochs: int = 6) -> tuple[int, str]:
    """How many epochs a trial of such accuracies (at a third, at two thirds) is trained for, and why no more."""
    watch, left = Watch(epochs, HEAD, majority=0.1), iter(accuracies)
    for done in range(epochs):
        if not watch.goes_on(done, lambda: np.arange(100) < 100 * next(left)):
            return done, watch.given_up
    return epochs, watch.given_up


def test_a_trial_is_given_up_where_not_even_its_last_gain_would_reach_the_head() -> None:
    assert looked_at(0.2)[0] == 2  # from 0.1 to 0.2, and twice as much again is 0.4
    assert looked_at(0.5, 0.55)[0] == 4
    done, why = looked_at(0.5, 0.6)
    assert done == 4 and "given up: after 4 of 6 epochs it is right in 0.600, where the best head is in 0.900" in why


def test_a_trial_that_may_still_reach_the_head_goes_on() -> None:
    assert looked_at(0.5, 0.8) == (6, "")
    assert looked_at(0.95, 0.95) == (6, "")
    assert looked_at(0.87, 0.87) == (6, "")  # behind by what chance explains
    assert looked_at(0.1, epochs=1) == (1, "")  # nothing to look at before the end


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Try, np.ndarray]:
    folder = tmp_path_factory.mktemp("trials")
    write_stripes(folder / "stripes", 12)
    config = AdviseConfig.model_validate(
        {"source": {"uri": str(folder / "stripes")}, "candidates": CANDIDATES[:1], "preprocessing": SIZE, "epochs": 3}
    )
    sample = take_sample(config)
    (candidate,), _ = find_candidates(config)
    return Try(Attempt("scratch", candidate), sample, config), np.ones(len(sample), bool)


def test_timing_leaves_the_network_as_it_is(begun: tuple[Try, np.ndarray], tmp_path: Path) -> None:
    trial, _ = begun
    before = {name: tensor.clone() for name, tensor in trial.network.state_dict().items()}
    assert trial.seconds() > 0
    after = trial.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in trial.network.parameters())


def test_a_trial_ends_when_the_minutes_do(begun: tuple[Try, np.ndarray]) -> None:
    trial, right_N = begun
    asked: list[float] = []

    def has_time(seconds: float) -> bool:
        asked.append(seconds)
        return False

    found = trial.run(right_N & False, has_time)
    assert "after 1 of 3 epochs the rest would take" in found.given_up and len(asked) == 1
