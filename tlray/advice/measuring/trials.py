"""Trials: a network really trained on three quarters of the sample, and measured on the fourth that it has not seen.

A trial is the training that `tlray train` would do with the command that is advised, by the same loop, without its files; but
all three quarters are trained on, to its end, so that a small sample leaves it about as many steps as the command has.

Shape legend: N images of the sample, K classes.
"""

import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tlray.advice.inputs.candidates import Candidate
from tlray.advice.inputs.sample import Sample
from tlray.advice.measuring.watch import Watch
from tlray.config import AdviseConfig, NetworkConfig, RecipeConfig, TrainConfig
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.layers.heads import Head, HeadSpec
from tlray.models.process.device import precision
from tlray.progress import readable_seconds
from tlray.recipe import IMAGE_RULE
from tlray.training.examples.examples import Split
from tlray.training.network.inputs.inputs import ImageRows
from tlray.training.network.learner.transfer_network import TransferNetwork
from tlray.training.network.loop import Training
from tlray.training.network.processes import Alone
from tlray.training.network.saved.checkpoints import Checkpoints, Parts, Progress

Kind = Literal["fine-tune", "freeze", "scratch"]

BATCH_SIZE = 32
LEARNING_RATE = 2e-3
BACKBONE_RATE = 0.25
"""Rates for few images and few epochs: a few hundred steps in all, in which the defaults of `tlray train`, meant for thousands,
would hardly move a network."""

TEST_FOLD = 0

_TIMED_IMAGES = 16


@dataclass(frozen=True)
class Attempt:
    """A way to train a network.

    Attributes:
        kind: what of it is trained, and from where.
        candidate: the network.
        cut: the layer up to which it stays as it is; None for `fine-tune` and `scratch`.
    """

    kind: Kind
    candidate: Candidate
    cut: str | None = None

    @property
    def network(self) -> NetworkConfig:
        """How `tlray train` is told to do it."""
        is_scratch = self.kind == "scratch"
        return NetworkConfig(
            freeze=self.cut or "none",
            start="scratch" if is_scratch else "weights",
            learning_rate=LEARNING_RATE,
            backbone_rate=1.0 if is_scratch else BACKBONE_RATE,
            augment=("crop",),
        )


@dataclass(frozen=True)
class Trial:
    """What came of an attempt to train a network.

    Attributes:
        rows: positions of the images in the sample that it was measured on, ascending.
        right: bool, which of these it tells right.
        trained_on: images.
        seconds: that training took.
        given_up: why it was ended early, so that nothing follows from `right`; nothing where it was not.
        is_behind: whether it was given up as it cannot reach the head, and not because the minutes are over.
    """

    rows: np.ndarray
    right: np.ndarray
    trained_on: int
    seconds: float
    given_up: str
    is_behind: bool


class _NoCheckpoints(Checkpoints):
    """Checkpoints of a training that nobody goes on with."""

    def __init__(self) -> None:
        super().__init__("")

    def save(self, step: int, parts: Parts, progress: Progress) -> None:
        """Keep nothing: a trial that is interrupted is not gone on with."""

    def last_step(self) -> int:
        """No step, as none is kept."""
        return -1


class Try:
    """An attempt with its network, which is trained on three folds of a sample, and measured on the fourth.

    Args:
        attempt: what is tried.
        sample: of labelled images.
        config: of the advice.

    Attributes:
        network: that is trained.
    """

    def __init__(self, attempt: Attempt, sample: Sample, config: AdviseConfig) -> None:
        self._attempt, self._sample, self._config, self._world = attempt, sample, config, Alone()
        self._backbone, self.network = _network(attempt, sample, config, self._world.device)

    def seconds(self) -> float:
        """What the whole training would take, measured on a few steps; the network stays as it is."""
        network, device = self.network, self._world.device
        before = deepcopy(network.state_dict())
        height, width = self._backbone.recipe.preprocessing.crop
        images_BHWC = torch.randint(0, 256, (_TIMED_IMAGES, height, width, 3), dtype=torch.uint8, device=device)
        network.train()
        seconds = []
        with precision(device, "fp32"), torch.random.fork_rng(devices=[]):
            for _ in range(2):
                began = time.monotonic()
                network(images_BHWC).logsumexp(dim=1).sum().backward()
                seconds.append(time.monotonic() - began)
        network.zero_grad(set_to_none=True)
        network.load_state_dict(before)
        return seconds[-1] / _TIMED_IMAGES * len(self._sample) * self._config.epochs

    def run(self, head_right_N: np.ndarray, has_time: Callable[[float], bool]) -> Trial:
        """Train, unless it turns out that the head cannot be reached.

        Args:
            head_right_N: which images of the sample the best head tells right.
            has_time: whether so many more seconds are left.
        """
        sample, config, began = self._sample, self._config, time.monotonic()
        test = np.flatnonzero(sample.folds_N == TEST_FOLD)
        train = np.flatnonzero(sample.folds_N != TEST_FOLD)
        splits_N = np.where(sample.folds_N == TEST_FOLD, Split.TEST, Split.TRAIN).astype(np.uint8)
        examples = replace(sample.examples, splits_N=splits_N)
        spec = ReadSpec.of(sample.source, self._backbone.recipe.preprocessing, IMAGE_RULE)
        network = self._attempt.network
        with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
            rows = ImageRows(
                sample.items, spec, kinds=network.augment or (), seed=config.seed, memory_bytes=None, scratch=Path(scratch)
            )
            fit = _train_config(self._attempt, config)
            with Training(self.network, examples, rows, fit, network, self._world, _NoCheckpoints()) as training:

                def right() -> np.ndarray:
                    with precision(self._world.device, "fp32"):
                        scores_NK, is_read_N = training.scores(test)
                    right_N: np.ndarray = (scores_NK.argmax(axis=1) == sample.targets[test]) & is_read_N
                    return right_N

                largest = np.bincount(sample.targets[train]).argmax()
                watch = Watch(config.epochs, head_right_N[test], float((sample.targets[test] == largest).mean()))

                def goes_on() -> bool:
                    done = training.progress.epoch
                    left = (config.epochs - done) * (time.monotonic() - began) / max(done, 1)
                    if done and not has_time(left):
                        watch.end(f"after {done} of {config.epochs} epochs the rest would take {readable_seconds(left)} more")
                    return watch.goes_on(done, right)

                training.run(goes_on)
                seconds = time.monotonic() - began
                return Trial(test, right(), len(train), seconds, watch.given_up, is_behind=watch.is_behind)


def _train_config(attempt: Attempt, config: AdviseConfig) -> TrainConfig:
    return TrainConfig(
        source=config.source,
        recipe=recipe_of(attempt, config.seed),
        out="file:///",  # nothing is written
        network=attempt.network,
        epochs=config.epochs,
        patience=config.epochs,
        batch_size=BATCH_SIZE,
        seed=config.seed,
        local=True,
    )


def recipe_of(attempt: Attempt, seed: int) -> RecipeConfig:
    """The network that an attempt begins with."""
    recipe = attempt.candidate.config
    return recipe.model_copy(update={"weights": f"random:{seed}"}) if attempt.kind == "scratch" else recipe


def _network(attempt: Attempt, sample: Sample, config: AdviseConfig, device: torch.device) -> tuple[Backbone, TransferNetwork]:
    """A network of its own: the candidate's is left as it is."""
    candidate, recipe = attempt.candidate, recipe_of(attempt, config.seed)
    backbone = candidate.single if recipe == candidate.config else resolve_backbone(recipe, local_copy)
    backbone = replace(backbone, module=deepcopy(backbone.module))
    (shape,) = backbone.shapes.values()
    spec = HeadSpec(kind="linear", inputs=int(np.prod(shape)), outputs=len(sample.examples.classes), hidden=(), dropout=0.0)
    assert candidate.anatomy is not None
    backbone.module.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        network = TransferNetwork(backbone, candidate.anatomy, attempt.cut, Head.of(spec))
    return backbone, network.to(device)
