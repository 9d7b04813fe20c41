"""`engine: auto`: what a trial finds, when there is one, and how long it counts."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.models.encoder.engines.opened import opened, pictures, resolve
from tests.models.encoder.engines.test_compiled import Untraceable
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines import choice, converted, trial
from tlray.models.encoder.engines.trial import Pace

pytest.importorskip("tlray.models.encoder.engines.openvino.model", exc_type=ImportError)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return resolve("timm:test_resnet")


@pytest.fixture(autouse=True)
def two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions by one of the others are enough here."""
    monkeypatch.setattr(choice, "OTHERS", {"openvino": choice.OTHERS["openvino"]})


class Paced:
    """What encoders are said to make in a turn, by the engine: images a second, one after the other, with a share of cores."""

    def __init__(self, share: float = 1.0, **rates: list[float]) -> None:
        self.share, self.rates, self.turns = share, rates, 0

    def __call__(self, encoder: Encoder, _images_BHWC: np.ndarray, _cores: int) -> Pace:
        self.turns += 1
        rates = self.rates[encoder.engine]
        rates.append(rates.pop(0))
        return Pace(rates[-1], self.share)

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> "Paced":
        for module in (choice, trial):
            monkeypatch.setattr(module, "pace_of", self)
        return self


@pytest.mark.parametrize(("torchs", "openvinos", "expected"), [(1.0, 2.0, "openvino"), (2.0, 1.0, "torch")])
def test_the_faster_one_is_taken_and_remembered(
    torchs: float,
    openvinos: float,
    expected: str,
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paced = Paced(torch=[torchs], openvino=[openvinos]).put_in(monkeypatch)
    assert opened(backbone, tmp_path, "auto").engine == "torch"  # how many images there are is not known
    assert opened(backbone, tmp_path, "auto", images=999).engine == "torch"  # too few of them
    assert paced.turns == 0
    paced.rates["torch"] = [1e3]
    assert opened(backbone, tmp_path, "auto", images=1000).engine == "torch"  # too fast
    assert paced.turns == 1 and list(tmp_path.glob("*.json")) == []
    paced.rates["torch"] = [torchs]
    with caplog.at_level(logging.INFO):
        assert opened(backbone, tmp_path, "auto", images=10**6).engine == expected
    assert (
        f"{expected} computes timm:test_resnet on this machine; images a second: torch at fp32 by 2 {torchs:.3g}, openvino"
        in caplog.text
    )
    tried = paced.turns
    assert opened(backbone, tmp_path, "auto").engine == expected
    assert opened(backbone, tmp_path, "auto", images=10**6).engine == expected
    assert paced.turns == tried
    assert opened(backbone, tmp_path, "torch").engine == "torch"
    (verdict,) = tmp_path.glob("*.json")
    assert json.loads(verdict.read_text())["until"] is None
    verdict.write_text("{")
    assert opened(backbone, tmp_path, "auto", images=10**6).engine == expected
    assert paced.turns > tried


def test_the_batch_that_was_the_fastest_is_taken(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pace_of(encoder: Encoder, _images_BHWC: np.ndarray, _cores: int) -> Pace:
        return Pace(3.0 if encoder.batch_size == 2 else 2.0 if encoder.engine == "torch" else 1.0, 1.0)

    monkeypatch.setattr(choice, "pace_of", pace_of)
    monkeypatch.setattr(trial, "pace_of", pace_of)
    for images in (10**6, 0):
        encoder = opened(backbone, tmp_path, "auto", batch_size=None, images=images)
        assert (encoder.engine, encoder.batch_size) == ("openvino", 2)
    assert opened(backbone, tmp_path, "auto", batch_size=4, images=10**6).engine == "torch"  # four at a time are asked for


def test_what_a_busy_machine_shows_is_soon_tried_again(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paced = Paced(0.3, torch=[2.0], openvino=[1.0]).put_in(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert opened(backbone, tmp_path, "auto", images=10**6).engine == "torch"
    rates = "torch at fp32 by 2 6.67, openvino at fp32 by 2 3.33"
    assert f"as the machine was busy: {rates}; a later run tries again" in caplog.text
    paced.rates, paced.share, tried = {"torch": [1.0], "openvino": [2.0]}, 1.0, paced.turns
    assert opened(backbone, tmp_path, "auto", images=10**6).engine == "torch"  # other workers of the same run
    assert paced.turns == tried
    later = time.time() + trial.BUSY_VERDICT_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    assert opened(backbone, tmp_path, "auto", images=10**6).engine == "openvino"
    (verdict,) = tmp_path.glob("*.json")
    assert json.loads(verdict.read_text())["until"] is None


def test_the_best_of_several_turns_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work slows a turn down, and makes none faster."""
    Paced(torch=[5.0, 1.0, 1.0, 1.0, 1.0], openvino=[3.0, 4.0, 4.0, 4.0, 4.0]).put_in(monkeypatch)
    ways = [trial.Way("torch", 1, "fp32"), trial.Way("openvino", 1, "fp32")]
    encoders: dict = {way: Named(way.engine) for way in ways}
    assert trial.try_all(encoders, np.zeros((1, 2, 2, 3), np.uint8), 1).way == ways[0]


class Named:
    """An encoder with a name alone."""

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def encode(self, _images_BHWC: np.ndarray) -> None:
        """Nothing."""


class Waiting(Named):
    """An encoder that takes as long as another one, and leaves its core alone meanwhile."""

    def encode(self, _images_BHWC: np.ndarray) -> None:
        """Nothing, slowly."""
        time.sleep(0.05)


class Computing(Named):
    """An encoder that takes a core's time."""

    def encode(self, _images_BHWC: np.ndarray) -> None:
        """A sum, for a while."""
        ends = time.process_time() + 0.05
        while time.process_time() < ends:
            pass


def test_a_turn_tells_what_share_of_its_cores_it_got() -> None:
    images_BHWC = np.zeros((3, 2, 2, 3), np.uint8)
    idle, at_work = (trial.pace_of(kind("torch"), images_BHWC, 1) for kind in (Waiting, Computing))
    assert idle.share < 0.3 and idle.rate <= 60
    assert 0 < at_work.share <= 1.05 and at_work.rate <= 60
    assert at_work.full_rate == pytest.approx(60, rel=0.15)


IN_ANOTHER_PROCESS = """
import logging, sys
from pathlib import Path
from tests.models.encoder.engines.opened import opened, pictures, resolve
from tlray.models.encoder.engines import choice, converted, trial
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
choice.OTHERS = {"openvino": choice.OTHERS["openvino"]}
choice.TRIAL_SECONDS = 0.0
tried = trial.try_all
def told(*arguments):
    print("TRIED", flush=True)
    return tried(*arguments)
choice.try_all = told
opened(resolve("timm:test_resnet"), Path(sys.argv[1]), "auto", images=10**6)
"""


def test_processes_of_one_machine_try_once(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path)]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sum(text.count("TRIED") for text in said) == 1
    assert all("computes timm:test_resnet on this machine; images a second" in text for text in said)


def test_it_remembers_what_cannot_be_converted(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Paced(torch=[1.0]).put_in(monkeypatch)
    recipe = backbone.recipe.model_copy(update={"taps": ("layer",)})
    odd = Backbone(recipe, Untraceable().eval(), {"embedding": (3,)})
    assert opened(odd, tmp_path, "auto", images=10**6).engine == "torch"
    (verdict,) = tmp_path.glob("*.json")
    began = time.monotonic()
    assert opened(odd, tmp_path, "auto", images=10**6).engine == "torch"
    assert time.monotonic() - began < 60 and "openvino cannot at fp32: " in verdict.read_text()


class PacedByFormat:
    """What encoders are said to make, by the engine and number format; those that are not named may not be tried."""

    def __init__(self, **rates: float) -> None:
        self.rates = rates

    def __call__(self, encoder: Encoder, _images_BHWC: np.ndarray, _cores: int) -> Pace:
        return Pace(self.rates[f"{encoder.engine}_{encoder.computes}"], 1.0)

    put_in = Paced.put_in


@pytest.mark.parametrize("installed", [False, True])
def test_a_recipe_of_16_bits_is_computed_at_fp32_where_that_is_faster(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "computes_as", lambda _device, compute: compute)
    if not installed:
        monkeypatch.setattr(choice, "OTHERS", {})
    reduced, exact = resolve("timm:test_resnet", "bf16"), resolve("timm:test_resnet")
    images_BHWC = pictures(reduced)
    expected = Encoder(exact, device="cpu", batch_size=2, lanes=2).encode(images_BHWC)["embedding"]
    PacedByFormat(torch_bf16=1.0, torch_fp32=2.0, openvino_fp32=1.5).put_in(monkeypatch)
    for images in (10**6, 0):
        encoder = opened(reduced, tmp_path, "auto", images=images)
        assert (encoder.computed_by, encoder.computes) == ("torch at fp32", "fp32")
        assert ("bf16 by openvino was not tried, as torch shows it slow here" in encoder.trial) == installed
        np.testing.assert_array_equal(encoder.encode(images_BHWC)["embedding"], expected)
    assert opened(reduced, tmp_path, "torch").computed_by == "torch"


def test_a_recipe_of_16_bits_by_another_engine_at_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as", lambda _device, compute: compute)
    reduced, exact = resolve("timm:test_resnet", "bf16"), resolve("timm:test_resnet")
    images_BHWC = pictures(reduced)
    expected = opened(exact, tmp_path, "openvino").encode(images_BHWC)["embedding"]
    PacedByFormat(torch_bf16=1.0, torch_fp32=2.0, openvino_fp32=3.0).put_in(monkeypatch)
    encoder = opened(reduced, tmp_path, "auto", images=10**6)
    assert encoder.computed_by == "openvino at fp32"
    np.testing.assert_array_equal(encoder.encode(images_BHWC)["embedding"], expected)


def test_fp32_is_not_tried_by_others_where_16_bits_are_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as", lambda _device, compute: compute)
    monkeypatch.setattr(choice, "OTHERS", {"openvino": replace(choice.OTHERS["openvino"], computes=("fp32",))})
    PacedByFormat(torch_bf16=3.0, torch_fp32=1.0).put_in(monkeypatch)
    assert opened(resolve("timm:test_resnet", "bf16"), tmp_path, "auto", images=10**6).computed_by == "torch"


def test_fp32_by_torch_is_tried_where_other_engines_do_not_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as", lambda _device, compute: compute)
    reduced = resolve("timm:test_resnet", "bf16")
    PacedByFormat(torch_bf16=100.0, torch_fp32=200.0, openvino_fp32=300.0).put_in(monkeypatch)
    few, many = 3_000, 30_000
    assert opened(reduced, tmp_path, "auto", images=1_000).computed_by == "torch"
    for images in (few, 0):
        encoder = opened(reduced, tmp_path, "auto", images=images)
        assert encoder.computed_by == "torch at fp32" and "openvino" not in encoder.trial
    assert opened(reduced, tmp_path, "auto", images=many).computed_by == "openvino at fp32"
    assert opened(reduced, tmp_path, "auto", images=few).computed_by == "openvino at fp32"


def test_ways_that_are_far_behind_get_no_second_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [trial.Way("torch", 8, "fp32"), trial.Way("openvino", 8, "fp32"), trial.Way("onnxruntime", 8, "fp32")]
    encoders: dict = {way: Named(way.engine) for way in ways}
    paced = Paced(torch=[1.0], openvino=[3.0], onnxruntime=[2.9]).put_in(monkeypatch)
    images_BHWC = np.zeros((1, 2, 2, 3), np.uint8)
    assert trial.try_all(encoders, images_BHWC, 1).way == ways[1]
    assert paced.turns == 1 + 2 * trial.TURNS
    paced.turns, paced.rates["onnxruntime"] = 0, [1.0]
    assert trial.try_all(encoders, images_BHWC, 1).way == ways[1]
    assert paced.turns == len(ways)


@pytest.mark.parametrize(("batch_size", "lanes", "expected"), [(8, 2, 16), (3, 2, 12), (1, 4, 4), (5, None, 10)])
def test_a_trial_gives_every_lane_whole_batches(batch_size: int, lanes: int | None, expected: int, backbone: Backbone) -> None:
    tried = choice._Choice(backbone, choice.Wanted("auto", lanes=lanes))
    tried._batch_size = batch_size
    assert len(tried._trial_images()) == expected


def test_slow_networks_are_tried_where_there_is_far_more_to_do(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial has each way compute for several calls, which take a slow network long."""
    paced = Paced(torch=[0.5], openvino=[5.0]).put_in(monkeypatch)
    assert opened(backbone, tmp_path, "auto", images=200).engine == "torch" and paced.turns == 0
    monkeypatch.setattr(choice, "LEAST_IMAGES", 10)
    assert opened(backbone, tmp_path, "auto", images=200).engine == "torch" and paced.turns == 1
    assert opened(backbone, tmp_path, "auto", images=2000).engine == "openvino"


def test_an_engine_that_drifts_at_16_bits_computes_at_fp32_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "computes_as", lambda _device, compute: compute)
    monkeypatch.setattr(converted, "CLOSE_COSINE", 1.1)
    with caplog.at_level(logging.INFO):
        encoder = opened(resolve("timm:test_resnet", "bf16"), tmp_path, "openvino")
    assert encoder.computed_by == "openvino at fp32"
    assert "openvino computes timm:test_resnet at fp32: " in caplog.text
