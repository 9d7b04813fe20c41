"""Trials: a network really trained on three quarters of the sample, and measured on the fourth that it has not seen.

A trial is the training that `tlray train` would do with the command that is advised, by the same loop, without its files.

Shape legend: N images of the sample, K classes.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tlray.advice.inputs.candidates import Candidate
from tlray.advice.inputs.sample import Sample
from tlray.advice.measuring.probes import held_out
from tlray.config import AdviseConfig, NetworkConfig, RecipeConfig, TrainConfig
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones import Backbone, resolve_backbone
from tlray.models.encoder.precision import precision
from tlray.models.heads import Head, HeadSpec
from tlray.recipe import IMAGE_RULE
from tlray.training.examples.examples import Split
from tlray.training.network.inputs.inputs import ImageRows
from tlray.training.network.learner.cut import anatomy_of
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
_HELD = 0.15
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
    """What came of an attempt.

    Attributes:
        attempt: what was tried.
        rows: positions of the images in the sample that it was measured on, ascending.
        right: bool, which of these it tells right.
        trained_on: images.
        seconds: that training took.
    """

    attempt: Attempt
    rows: np.ndarray
    right: np.ndarray
    trained_on: int
    seconds: float


class _NoCheckpoints(Checkpoints):
    """Checkpoints of a training that nobody goes on with."""

    def __init__(self) -> None:
        super().__init__("")

    def save(self, step: int, parts: Parts, progress: Progress) -> None:
        """Keep nothing."""

    def last_step(self) -> int:
        """There is none."""
        return -1


def try_out(attempt: Attempt, sample: Sample, config: AdviseConfig) -> Trial:
    """Train on three folds of a sample, and measure on the fourth."""
    test = np.flatnonzero(sample.folds_N == TEST_FOLD)
    train = np.flatnonzero(sample.folds_N != TEST_FOLD)
    splits_N = np.full(len(sample), Split.TRAIN, np.uint8)
    splits_N[test], splits_N[held_out(sample.targets, train, _HELD, config.seed)] = Split.TEST, Split.VALIDATION
    examples = replace(sample.examples, splits_N=splits_N)
    fit = _train_config(attempt, config)
    began, world = time.monotonic(), Alone()
    backbone, network = _network(attempt, sample, config, world.device)
    spec = ReadSpec.of(sample.source, backbone.recipe.preprocessing, IMAGE_RULE)
    with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
        rows = ImageRows(
            sample.items, spec, kinds=attempt.network.augment or (), seed=config.seed, memory_bytes=None, scratch=Path(scratch)
        )
        with Training(network, examples, rows, fit, attempt.network, world, _NoCheckpoints()) as training:
            training.run()
            with precision(world.device, "fp32"):
                scores_NK, is_read_N = training.scores(test)
    right = (scores_NK.argmax(axis=1) == sample.targets[test]) & is_read_N
    return Trial(attempt, test, right, int((splits_N == Split.TRAIN).sum()), time.monotonic() - began)


def seconds_per_image(attempt: Attempt, sample: Sample, config: AdviseConfig) -> float:
    """Time that an image takes in one epoch of training, measured on a few steps of a network of its own."""
    device = Alone().device
    backbone, network = _network(attempt, sample, config, device)
    height, width = backbone.recipe.preprocessing.crop
    images_BHWC = torch.randint(0, 256, (_TIMED_IMAGES, height, width, 3), dtype=torch.uint8, device=device)
    network.train()
    seconds = []
    with precision(device, "fp32"), torch.random.fork_rng(devices=[]):
        for _ in range(2):
            began = time.monotonic()
            network(images_BHWC).logsumexp(dim=1).sum().backward()
            seconds.append(time.monotonic() - began)
    return seconds[-1] / _TIMED_IMAGES


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
    backbone = resolve_backbone(recipe_of(attempt, config.seed), local_copy)
    (shape,) = backbone.shapes.values()
    spec = HeadSpec(kind="linear", inputs=int(np.prod(shape)), outputs=len(sample.examples.classes), hidden=(), dropout=0.0)
    anatomy = anatomy_of(backbone)
    backbone.module.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        network = TransferNetwork(backbone, anatomy, attempt.cut, Head.of(spec))
    return backbone, network.to(device)
