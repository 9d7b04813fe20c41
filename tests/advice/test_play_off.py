"""What is chosen where several are near the best: by what tells them apart on few images, and not by luck."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.advice.test_rules import strategy
from tlray.advice.inputs.sample import Sample, folds
from tlray.advice.measuring.difference import Difference
from tlray.advice.measuring.probes import Probe
from tlray.advice.measuring.race import PLAY_OFF, Finish, Racer, play_off
from tlray.advice.verdict.judge import judge
from tlray.training.examples.examples import Examples


def test_the_loss_is_briers_and_the_mean_that_of_several() -> None:
    targets = np.array([0, 0, 1])
    one = Probe.of(np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3]], np.float32), targets)
    np.testing.assert_allclose(one.loss_N, [0.08, 0.72, 0.98], atol=1e-6)
    assert one.right_N.tolist() == [1, 0, 0] and one.accuracy.value == pytest.approx(1 / 3)
    other = Probe.of(np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], np.float32), targets)
    both = Probe.mean([one, other])
    assert both.right_N.tolist() == [1, 0.5, 0] and both.loss == pytest.approx((one.loss + other.loss) / 2)


def test_a_difference_of_shares_is_that_of_right_and_wrong_where_they_are_whole() -> None:
    one, other = np.random.default_rng(0).random((2, 300)) < [[0.8], [0.7]]
    better, worse = (one & ~other).sum(), (~one & other).sum()
    found = Difference.of(one, other)
    assert found.mean == pytest.approx((better - worse) / 300)
    assert found.error == pytest.approx(np.sqrt(((better + worse + 2) / 300 - found.mean**2) / 300))
    halves = Difference.of(one * 0.5 + 0.25, other * 0.5 + 0.25)
    assert halves.mean == pytest.approx(found.mean / 2) and halves.error < 0.6 * found.error


def sample_of(targets: np.ndarray, groups: np.ndarray) -> Sample:
    count, nothing = len(targets), None
    numbers: Any = np.arange(count)
    examples = Examples(numbers, targets, np.zeros(count, np.uint8), "single", ("a", "b"), numbers)
    given: Any = (nothing, nothing, examples, count, {}, nothing, groups, folds(targets, groups, 0), {})
    return Sample(*given)


def test_other_folds_keep_near_duplicates_together_in_a_part_of_a_sample() -> None:
    groups = np.repeat(np.arange(0, 120, 3), 3)
    part: Any = SimpleNamespace(targets=np.arange(60, 120) // 3 % 2, group_N=groups[60:])
    found = [Sample.other_folds(part, seed) for seed in (1, 2)]
    for one in found:
        assert (one.reshape(-1, 3) == one[::3, None]).all() and len(set(one.tolist())) == 4
    assert (found[0] != found[1]).any()


def test_near_ones_are_judged_again_and_the_others_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One was lucky in the race; the mean of several cross-validations says so."""
    targets = np.arange(80) % 2
    sample = sample_of(targets, np.arange(80))

    def probe_of(share: float, sure: float) -> Probe:
        likely_N = np.where(np.arange(80) * 7919 % 80 < share * 80, sure, 1 - sure)
        return Probe.of(np.stack([np.where(targets == one, likely_N, 1 - likely_N) for one in (0, 1)], axis=1), targets)

    seen = {"lucky": probe_of(0.92, 0.95), "steady": probe_of(0.9, 0.9), "bad": probe_of(0.5, 0.6)}
    truth = [probe_of(0.8, 0.7), seen["steady"], seen["bad"]]
    asked: list[int] = []

    def judged(features_ND: np.ndarray, *_: object, seed: int) -> Probe:
        asked.append(int(features_ND[0, 0]))
        return truth[asked[-1]]

    def racer(name: str, number: int) -> Racer:
        features = {"x": np.full((80, 1), number, np.float32)}
        embedder: Any = SimpleNamespace(candidate=SimpleNamespace(name=name, features=features, seconds_per_image=0.0))
        return Racer(embedder, {"x": seen[name]}, sample)

    monkeypatch.setattr("tlray.advice.measuring.race.linear_probe", judged)
    finish = Finish(tuple(racer(name, number) for number, name in enumerate(seen)), (), sample)
    assert play_off(finish, 0, 1.0, lambda seconds: seconds < 1) is finish  # there is no time
    after = play_off(finish, 0, 1.0, lambda _: True)
    assert [one.candidate.name for one in after.racers] == ["steady", "lucky", "bad"]
    assert sorted(asked) == [0] * (PLAY_OFF - 1) + [1] * (PLAY_OFF - 1)
    assert after.racers[1].right.mean() == pytest.approx((0.92 + 4 * 0.8) / 5, abs=0.01)


def test_a_head_is_kept_unless_training_is_better_by_more_than_an_error() -> None:
    right = np.arange(60) % 10 != 0
    little, much = right.copy(), np.ones(60, bool)
    little[0] = True
    for trial, expected in ((little, "head"), (much, "fine-tune")):
        said = judge([strategy("net", right, 1), strategy("net", trial, 100, "fine-tune")], 0.3, 4)
        assert said["recommendation"]["strategy"] == expected
