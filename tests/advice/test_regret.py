"""How the benchmark of advice counts."""

import pytest

from tests.bench.advice.truth import without_folder
from tests.bench.advise import interval_of, regrets


def test_regret_is_what_is_lost_against_the_best_of_all() -> None:
    truth = {("head", "a", "x"): 0.9, ("head", "b", "x"): 0.8, ("scratch", "b", "x"): 0.4}
    found = regrets(truth, {"advice": ("head", "b", "x"), "random": None})
    assert found["advice"] == pytest.approx(10) and found["random"] == pytest.approx(20)
    low, high = interval_of([0.0, 1.0, 2.0, 3.0])
    assert 0 <= low < 1 and 2 < high <= 3 and interval_of([1.5] * 6) == [1.5, 1.5]


def test_a_truth_holds_wherever_its_cache_lies() -> None:
    names = [without_folder(f"onnx:{folder}/open_nsfw.onnx") for folder in ("/tmp/a", "/work/b/c")]
    assert names == ["onnx:open_nsfw.onnx"] * 2 and without_folder("timm:net@package:x#order") == "timm:net@package:x#order"
