"""`engine: auto`: what a trial finds, when there is one, and how long it counts."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.models.encoder.engines.opened import opened, resolve
from tests.models.encoder.engines.test_compiled import Untraceable
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines import choice, trial
from tlray.models.encoder.engines.trial import Pace

pytest.importorskip("tlray.models.encoder.engines.openvino.model", exc_type=ImportError)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return resolve("timm:test_resnet")


@pytest.fixture(autouse=True)
def two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions by one of the others are enough here."""
    monkeypatch.setattr(choice, "_OTHERS", {"openvino": choice._OTHERS["openvino"]})


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
        f"{expected} computes timm:test_resnet on this machine; images a second: torch by 2 {torchs:.3g}, openvino"
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
        return Pace(3.0 if encoder.batch_size == 1 else 2.0 if encoder.engine == "torch" else 1.0, 1.0)

    monkeypatch.setattr(choice, "pace_of", pace_of)
    monkeypatch.setattr(trial, "pace_of", pace_of)
    for images in (10**6, 0):
        encoder = opened(backbone, tmp_path, "auto", batch_size=None, images=images)
        assert (encoder.engine, encoder.batch_size) == ("openvino", 1)
    assert opened(backbone, tmp_path, "auto", images=10**6).engine == "torch"  # two at a time are asked for


def test_what_a_busy_machine_shows_is_soon_tried_again(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paced = Paced(0.3, torch=[2.0], openvino=[1.0]).put_in(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert opened(backbone, tmp_path, "auto", images=10**6).engine == "torch"
    assert "as the machine was busy: torch by 2 6.67, openvino by 2 3.33; a later run tries again" in caplog.text
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
    ways = [trial.Way("torch", 1), trial.Way("openvino", 1)]
    encoders: dict = {way: Named(way.engine) for way in ways}
    assert trial.try_all(encoders, np.zeros((1, 2, 2, 3), np.uint8), 1).engine == "torch"


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
from tests.models.encoder.engines.opened import opened, resolve
from tlray.models.encoder.engines import choice, trial
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
choice._OTHERS = {"openvino": choice._OTHERS["openvino"]}
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
    assert time.monotonic() - began < 60 and "openvino cannot: " in verdict.read_text()
