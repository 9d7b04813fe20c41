"""The rules that advice goes by: samples, folds, layers, the budget, the commands, and when it cannot tell."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.advice.pictures import CANDIDATES, SIZE, write_stripes
from tests.photos import result_of, tlray
from tlray.advice.advise import attempts_of, freezing_point
from tlray.advice.inputs.candidates import choose_layers, find_candidates
from tlray.advice.inputs.sample import FOLDS, LEAST_ROWS, folds, stratified
from tlray.advice.measuring.budget import Clock, fit_to_budget
from tlray.advice.measuring.race import rungs_of
from tlray.advice.measuring.trials import Attempt
from tlray.advice.verdict.commands import head_commands, network_commands
from tlray.advice.verdict.judge import judge
from tlray.advice.verdict.scenario import scenario_of
from tlray.advice.verdict.strategies import Strategy
from tlray.cli.flags import parse
from tlray.commands import COMMANDS
from tlray.config import AdviseConfig, ExtractConfig, TrainConfig
from tlray.config_reader import read_config
from tlray.errors import ConfigError
from tlray.training.examples.metrics import wilson


def test_a_sample_has_each_class_in_its_share() -> None:
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [800, 150, 6]))
    rows = stratified(targets, 300)
    sizes = np.bincount(targets[rows])
    assert sizes[0] == round(800 * 300 / 956) and sizes[1] == round(150 * 300 / 956) and sizes[2] == LEAST_ROWS
    assert (np.diff(rows) > 0).all() and set(stratified(targets, 10_000)) == set(range(956))
    assert set(stratified(targets, 100)) <= set(rows)  # what is embedded once is used again


def test_folds_keep_groups_together_and_classes_apart_evenly() -> None:
    generator = np.random.default_rng(1)
    targets = generator.integers(4, size=400)
    groups = np.arange(400)
    for first in range(0, 100, 5):
        groups[first : first + 4] = first
    found = folds(targets, groups, seed=3)
    for first in range(0, 100, 5):
        assert len(set(found[first : first + 4])) == 1
    counts = np.array([[np.sum((found == fold) & (targets == one)) for one in range(4)] for fold in range(FOLDS)])
    assert counts.min() > 0.6 * counts.mean()


def test_layers_are_cuts_over_the_depth_and_the_penultimate_last() -> None:
    config = AdviseConfig.model_validate({"source": {"uri": "x"}, "candidates": CANDIDATES, "preprocessing": SIZE, "layers": 4})
    for candidate in find_candidates(config)[0]:
        assert candidate.anatomy is not None
        taps = choose_layers(candidate.anatomy, 4)
        assert 2 <= len(taps) <= 4 and len(set(taps)) == len(taps) and taps[-1] == candidate.anatomy.tap
        assert set(taps[:-1]) <= set(candidate.anatomy.cuts)
        depths = [candidate.depth(tap) for tap in taps]
        assert depths == sorted(depths) and depths[0] < 0.6 and depths[-1] == 1
        assert choose_layers(candidate.anatomy, 1) == (candidate.anatomy.tap,)


@pytest.mark.parametrize(
    ("images", "classes", "sizes"),
    [(2000, 10, [500, 1000, 2000]), (240, 10, [120, 240]), (600, 3, [150, 300, 600]), (30, 3, [30])],
)
def test_rungs_differ_enough_to_be_worth_their_probes(images: int, classes: int, sizes: list[int]) -> None:
    targets = np.arange(images) % classes
    sample: Any = FakeSample(images)
    sample.examples = SimpleNamespace(classes=range(classes))
    sample.first = lambda count: stratified(targets, count)
    assert [len(rows) for rows in rungs_of(sample)] == sizes


def racer(accuracies: dict[str, float], *, pretrained: bool = True, fixed: bool = False) -> Any:
    probes = {tap: SimpleNamespace(right_N=np.arange(100) < 100 * accuracy) for tap, accuracy in accuracies.items()}
    taps = tuple(accuracies)
    anatomy = None if fixed else SimpleNamespace(cuts=dict.fromkeys(taps))
    candidate = SimpleNamespace(name="net", taps=taps, tap=taps[-1], anatomy=anatomy, is_pretrained=pretrained)
    return SimpleNamespace(candidate=candidate, probes=probes)


def test_freezing_goes_up_to_the_layer_that_tells_most() -> None:
    assert freezing_point(racer({"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.6})) == "b"
    assert freezing_point(racer({"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.9})) == "c"
    assert freezing_point(racer({"d": 0.9})) is None


def test_what_is_tried_depends_on_the_network_and_on_likeness() -> None:
    some = {"a": 0.5, "b": 0.9}
    assert [one.kind for one in attempts_of(racer(some), 0.8)] == ["freeze", "fine-tune"]
    assert [one.kind for one in attempts_of(racer(some), 0.1)] == ["freeze", "fine-tune", "scratch"]
    assert [one.kind for one in attempts_of(racer(some, pretrained=False), None)] == ["scratch"]
    assert attempts_of(racer(some, fixed=True), 0.8) == []


class FakeEmbedder:
    """A network that takes so many seconds an image."""

    def __init__(self, name: str, seconds: float) -> None:
        self.candidate = SimpleNamespace(name=name, seconds_per_image=seconds, taps=("a",))
        self.rows: np.ndarray | None = None

    def restrict(self, rows: np.ndarray) -> None:
        self.rows = rows


class FakeSample:
    """Images of two classes that nobody looks at."""

    examples = SimpleNamespace(classes=("cat", "dog"))

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> np.ndarray:
        return np.arange(min(count, self.count))

    def take(self, rows: np.ndarray) -> "FakeSample":
        return FakeSample(len(rows))


def fitted(minutes: float, *seconds: float) -> tuple[Any, list[Any], dict[str, str]]:
    embedders: Any = [FakeEmbedder(f"net-{at}", one) for at, one in enumerate(seconds)]
    sample: Any = FakeSample(1000)
    return fit_to_budget(sample, embedders, Clock(minutes), 0.0)


def test_a_small_budget_takes_fewer_images_then_fewer_candidates() -> None:
    sample, kept, dropped = fitted(10, 0.1, 0.2)
    assert len(sample) == 1000 and len(kept) == 2 and not dropped
    sample, kept, dropped = fitted(1, 0.1, 0.2)
    assert 190 <= len(sample) <= 200 and len(kept) == 2 and not dropped and kept[0].rows is not None
    sample, kept, dropped = fitted(0.2, 0.1, 0.2, 3.0)
    assert [one.candidate.name for one in kept] == ["net-0", "net-1"] and set(dropped) == {"net-2"} and len(sample) < 45
    with pytest.raises(ConfigError, match=r"too little for one candidate: net-1 on 20 images takes .* give --minutes"):
        fitted(0.001, 0.2, 0.1)


def strategy(name: str, right: np.ndarray, cost: float, kind: Any = "head") -> Strategy:
    candidate: Any = SimpleNamespace(name=name)
    rows = np.arange(len(right))
    expected = wilson(int(right.sum()), len(right))
    return Strategy(kind, candidate, "layer", rows, right, expected.value, expected, cost, ["tlray ..."])


def test_it_cannot_tell_what_differs_by_a_few_images() -> None:
    right = np.arange(400) % 10 != 0
    other = right.copy()
    other[:30:10], other[1:24:10] = True, False  # three better, three worse
    other[35] = False
    said = judge([strategy("dear", right, 100), strategy("cheap", other, 1)], 0.3, 4)
    assert said["verdict"] == "cannot tell" and said["recommendation"]["candidate"] == "dear"
    assert [one["candidate"] for one in said["alike"]] == ["cheap"] and "the cheapest of them" in said["reason"]
    assert said["labels_to_decide"] > 1000
    worse = np.arange(400) % 4 != 0
    said = judge([strategy("good", right, 1), strategy("bad", worse, 1)], 0.3, 4)
    assert said["verdict"] == "recommended" and not said["alike"] and said["labels_to_decide"] is None


def test_chance_is_told_from_skill() -> None:
    assert judge([strategy("net", np.arange(100) < 40, 1)], 0.34, 20)["verdict"] == "nothing"
    assert judge([strategy("net", np.arange(100) < 70, 1)], 0.34, 20)["verdict"] == "recommended"


@pytest.mark.parametrize(
    ("labels", "likeness", "corner"),
    [
        (20, 0.9, "little, like"),
        (20, 0.1, "little, unlike"),
        (5000, 0.9, "much, like"),
        (5000, -1.0, "much, unlike"),
        (9, None, None),
    ],
)
def test_the_map_has_four_corners(labels: float, likeness: float | None, corner: str | None) -> None:
    assert scenario_of(labels, likeness)["corner"] == corner


def test_commands_carry_everything_that_was_asked_for(tmp_path: Path) -> None:
    asked = {
        "source": {"uri": str(tmp_path / "my pictures"), "include": ("**/*.png",), "max_image_bytes": 5_000_000},
        "candidates": CANDIDATES,
        "preprocessing": {"resize": 40, "crop": (32, 24), "interpolation": "bilinear", "antialias": False},
        "labels": "labels.csv",
        "label_columns": ("kind",),
        "split": {"test": 0.3, "group": "patient"},
        "skip": ("unlabelled",),
        "seed": 7,
    }
    config = AdviseConfig.model_validate(asked)
    candidate = find_candidates(config)[0][0]
    extract, train = (shlex.split(command)[1:] for command in head_commands(config, candidate, candidate.taps[0]))
    one = read_config(ExtractConfig, parse("extract", COMMANDS["extract"], extract[1:]).given)
    assert one.source.model_dump() == config.source.model_dump()
    assert one.recipe.preprocessing == config.preprocessing and one.recipe.taps == (candidate.taps[0],)
    assert (one.recipe.backbone, one.recipe.weights) == ("timm:test_resnet", "random:1")
    other = read_config(TrainConfig, parse("train", COMMANDS["train"], train[1:]).given)
    assert other.table == one.table and (other.labels, other.label_columns) == ("labels.csv", ("kind",))
    assert (other.split, other.skip, other.seed, other.refit) == (config.split, config.skip, 7, True)


def test_commands_reach_the_same_places_and_take_odd_words_and_images_that_fail() -> None:
    asked = {
        "source": {"uri": "-odd/my 'ü' $HOME", "include": ("-*.png", "b/**"), "labels": "-kind", "match_case": True},
        "candidates": CANDIDATES,
        "labels": "column",
        "max_failed_fraction": 0.2,
        "stores": ("s3://lake/ profile=lake endpoint_url=http://127.0.0.1:1", "s3://open/ anonymous"),
    }
    config = AdviseConfig.model_validate(asked)
    candidate = find_candidates(config)[0][0]
    (network,) = network_commands(config, Attempt("scratch", candidate), some_fail=True)
    commands = [*head_commands(config, candidate, candidate.taps[0], some_fail=True), network]
    extract, head, network = (
        read_config(COMMANDS[name].config, parse(name, COMMANDS[name], words).given)
        for _, name, *words in map(shlex.split, commands)
    )
    assert isinstance(extract, ExtractConfig) and isinstance(head, TrainConfig) and isinstance(network, TrainConfig)
    assert extract.stores == head.stores == network.stores == config.stores
    assert network.source == config.source
    assert extract.source == config.source.model_copy(update={"uri": "./-odd/my 'ü' $HOME"})
    assert extract.max_failed_fraction == 0.2
    assert network.network is not None and network.network.max_failed_fraction == 0.2
    calm = [*head_commands(config, candidate, candidate.taps[0]), *network_commands(config, Attempt("scratch", candidate))]
    assert "max-failed-fraction" not in " ".join(calm)


def test_near_duplicates_across_splits_are_counted(tmp_path: Path) -> None:
    write_stripes(tmp_path / "images", 12, classes=2)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    lines = ["uri,label,split"]
    for number, path in enumerate(paths):
        lines.append(f"{path},{path.parent.name},{('train', 'train', 'validation', 'test')[number % 4]}")
    copy = paths[0].with_name("copy.png")
    copy.write_bytes(paths[0].read_bytes())
    lines.append(f"{copy},kind-0,test")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words = ["--labels", tmp_path / "labels.csv", "--split.column", "split", "--candidates", CANDIDATES[0], "--no-trials"]
    advice = result_of(tlray("advise", tmp_path / "images", *words, "--resize", "32", "--crop", "32", "--layers", "1"))
    copies = advice["data"]["near_duplicates"]
    assert copies["across_splits"] == 1 and {one["split"] for one in copies["examples"][0]} == {"train", "test"}
