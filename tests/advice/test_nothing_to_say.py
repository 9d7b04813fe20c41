"""With labels that mean nothing nothing is recommended, whatever the seed; and what cannot be told apart is called so."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from tests.advice.pictures import SIZE, write_shuffled
from tlray.advice.advise import advise
from tlray.advice.measuring.difference import Difference
from tlray.advice.verdict.judge import chance_of
from tlray.config import AdviseConfig

SEEDS = 20


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_recommended_on_shuffled_labels(seed: int, tmp_path: Path) -> None:
    write_shuffled(tmp_path / "shuffled", 20, classes=3, seed=seed)
    config = AdviseConfig.model_validate(
        {
            "source": {"uri": str(tmp_path / "shuffled")},
            "candidates": ("timm:test_resnet@random:1", "timm:test_resnet@random:2"),
            "preprocessing": SIZE,
            "layers": 2,
            "seed": seed,
            "minutes": 30,
        }
    )
    advice = advise(config)
    assert advice["verdict"] == "nothing" and advice["recommendation"] is None, advice["reason"]
    assert len(advice["strategies"]) <= 2 and "shuffled" in advice["reason"]


@pytest.mark.parametrize(
    ("right", "rows", "share"), [(40, 100, 0.34), (7, 20, 0.2), (300, 900, 1 / 3), (20, 20, 0.5), (0, 9, 0.5)]
)
def test_the_chance_of_right_answers_is_the_binomials(right: int, rows: int, share: float) -> None:
    assert chance_of(right, rows, share) == pytest.approx(float(binom.sf(right - 1, rows, share)), abs=1e-9)


def test_a_difference_is_found_as_often_as_its_level_says() -> None:
    """Of two that are equally good, and err on images of their own, one is called better about as often as the level says."""
    generator = np.random.default_rng(0)
    called = [Difference.of(*(generator.random((2, 200)) < 0.8)).exceeds(0.05) for _ in range(2000)]
    assert 0.02 < np.mean(called) < 0.06
    better = [Difference.of(generator.random(400) < 0.9, generator.random(400) < 0.75).exceeds(0.05) for _ in range(200)]
    assert np.mean(better) > 0.99
