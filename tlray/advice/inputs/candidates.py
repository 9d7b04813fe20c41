"""The networks that are compared: found and loaded, their layers chosen, and their features of a sample computed.

Shape legend: N images, H height, W width, C channels, D length of a vector, Z classes of a network's own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tlray.config import AdviseConfig, RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError, first_line
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.storage.local_copy import local_copy
from tlray.machine.capacity import usable_cores
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import Backbone, resolve_backbone, with_taps
from tlray.models.encoder.encoder import Encoder, default_batch_size, recipe_at_fp32
from tlray.models.layers.freezing import Anatomy
from tlray.models.process.device import choose_device
from tlray.models.weights.spec import WeightsSpec
from tlray.progress import say
from tlray.scoring import probabilities_of
from tlray.training.network.learner.cut import anatomy_of

KNOWN = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "timm:vit_small_patch14_dinov2",
)
"""Candidates where none are named: small and middling ones of four families and two ways of pretraining. Those whose weights
cannot be had on this machine are left out, and said."""

SEPARATOR = "@"

FEW = 500
"""Images under which a sample is embedded at fp32: to find out which layers may be rounded takes as long as some hundreds."""

BATCH_IMAGES = 32
"""At most: of small images batches would be larger, and rungs of a few hundred images would be half padding."""


@dataclass
class Candidate:
    """A network that is compared with others.

    Attributes:
        name: as the user says it.
        config: of its recipe, with the penultimate layer as its only tap.
        single: the backbone with that tap alone.
        backbone: whose taps are the layers that are tried, in order of depth, the penultimate last; and its classifier.
        anatomy: up to the penultimate layer; None of a network that cannot be trained, of which only that layer is tried.
        taps: the layers that are tried.
        classifier: the column of its own classifier's scores, where it has one that was trained.
        seconds_per_image: measured on this machine.
        dropped_after: images of the sample after which it was out of the race; None for those that reached its end.
        features: of the images that were embedded so far, by tap, features_ND.
        own_NZ: its own classifier's probabilities of these.
    """

    name: str
    config: RecipeConfig
    single: Backbone
    backbone: Backbone
    anatomy: Anatomy | None
    taps: tuple[str, ...]
    classifier: str | None
    seconds_per_image: float = 0.0
    dropped_after: int | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)
    own_NZ: np.ndarray | None = None

    @property
    def tap(self) -> str:
        """The penultimate layer, whose features a head would be trained on."""
        return self.taps[-1]

    @property
    def is_pretrained(self) -> bool:
        """Whether its weights have seen any image."""
        return WeightsSpec.parse(self.config.weights).kind != "random"

    @property
    def parameters(self) -> int:
        """How many numbers its layers up to the penultimate one hold."""
        named = dict(self.backbone.module.named_parameters())
        return sum(named[name].numel() for name in (self.anatomy.used if self.anatomy else named))

    def depth(self, tap: str) -> float:
        """Share of the layers with weights that are done when a layer is."""
        return self.anatomy.weighted[tap] / max(1, self.anatomy.weighted[self.tap]) if self.anatomy else 1.0


class Embedder:
    """Runs one candidate over images of the sample, more and more of them.

    Args:
        candidate: gets the features.
        images_NHWC: of the whole sample, as its recipe has them.
    """

    def __init__(self, candidate: Candidate, images_NHWC: np.ndarray) -> None:
        self.candidate, self._images_NHWC = candidate, images_NHWC
        backbone, self._lanes = candidate.backbone, usable_cores()
        if len(images_NHWC) < FEW:
            backbone = replace(backbone, recipe=recipe_at_fp32(backbone.recipe))
        batch_size = min(BATCH_IMAGES, default_batch_size(backbone.recipe, choose_device("auto")))
        self._encoder = Encoder(backbone, batch_size=batch_size, lanes=self._lanes)
        self._row_of: dict[int, int] = {}
        self._columns: dict[str, list[np.ndarray]] = {}

    def restrict(self, rows: np.ndarray) -> None:
        """Go on with some of the images; what is known of them stays."""
        self._images_NHWC = self._images_NHWC[rows]
        self._row_of = {at: self._row_of[row] for at, row in enumerate(rows.tolist()) if row in self._row_of}

    @property
    def timed_images(self) -> int:
        """How many images it takes to tell how long the network takes: a batch a lane to warm up, and another."""
        return 2 * self._lanes * self._encoder.batch_size

    def time(self, rows: np.ndarray) -> float:
        """Seconds that an image takes, measured on the second half of some rows, which are not embedded again.

        Args:
            rows: `timed_images` or, of a small sample, all.
        """
        self._encode(rows[: len(rows) // 2])
        began, rest = time.perf_counter(), rows[len(rows) // 2 :]
        self._encode(rest)
        self.candidate.seconds_per_image = (time.perf_counter() - began) / len(rest)
        return self.candidate.seconds_per_image

    def _encode(self, rows: np.ndarray) -> None:
        for column, features_ND in self._encoder.encode(self._images_NHWC[rows]).items():
            self._columns.setdefault(column, []).append(features_ND)
        self._row_of |= {int(row): len(self._row_of) + at for at, row in enumerate(rows)}

    def embed(self, rows: np.ndarray) -> None:
        """Have the candidate's features of these rows, in their order; those that it had are not computed again.

        Raises:
            ConfigError: they are not finite.
        """
        candidate, columns = self.candidate, self.candidate.backbone.recipe.columns
        new = np.array([row for row in rows if row not in self._row_of], np.int64)
        if len(new):
            self._encode(new)
        at = np.array([self._row_of[int(row)] for row in rows], np.int64)
        whole = {column: np.concatenate(parts) for column, parts in self._columns.items()}
        self._columns = {column: [features_ND] for column, features_ND in whole.items()}
        candidate.features = {tap: whole[columns[tap]][at] for tap in candidate.taps}
        odd = [tap for tap, features_ND in candidate.features.items() if not np.isfinite(features_ND).all()]
        if odd:
            raise ConfigError(f"{candidate.name} gives numbers that are not finite at {odd[0]}; leave it out of candidates")
        if candidate.classifier is not None:
            candidate.own_NZ = probabilities_of(whole[candidate.classifier][at], "single")


def find_candidates(config: AdviseConfig) -> tuple[list[Candidate], dict[str, str]]:
    """Load the networks that are to be compared.

    Returns:
        Them, and why others of `KNOWN` are left out, by name.

    Raises:
        BackboneError: a named one does not exist.
        WeightsError: its weights cannot be had.
        ConfigError: it cannot take such images, or none is left.
    """
    names = config.candidates or KNOWN
    if len(set(names)) != len(names):
        raise ConfigError(f"candidates names one twice: {', '.join(names)}; name each once")
    found, left_out = [], dict[str, str]()
    for name in names:
        try:
            found.append(_load(name, config))
        except WeightsError as error:
            if config.candidates:
                raise
            left_out[name] = first_line(error)
    for name, reason in left_out.items():
        say(f"left out: {name}: {reason}")
    if not found:
        raise ConfigError(
            f"none of the known candidates can be had on this machine ({', '.join(KNOWN)}); name some, with their weights: "
            f"--candidates BACKBONE{SEPARATOR}WEIGHTS"
        )
    return found, left_out


def _load(name: str, config: AdviseConfig) -> Candidate:
    backbone_name, separator, weights = name.partition(SEPARATOR)
    if not backbone_name or (separator and not weights):
        raise BackboneError(f"the candidate {name!r} is not BACKBONE or BACKBONE{SEPARATOR}WEIGHTS, such as resnet50")
    recipe = RecipeConfig(backbone=backbone_name, weights=weights or "default", preprocessing=config.preprocessing)
    single = resolve_backbone(recipe, local_copy)
    check_preprocessing(single.recipe.preprocessing)
    anatomy = None if single.fixed else anatomy_of(single)
    taps = _fitting(single, choose_layers(anatomy, config.layers)) if anatomy else single.recipe.taps
    chosen = with_taps(single, taps)
    classifier = None
    if WeightsSpec.parse(recipe.weights).kind != "random":
        try:
            own = own_classifier(chosen, keep_embeddings=True)
        except ConfigError:  # it came without one, or gives its scores in a way that no layer has
            pass
        else:
            chosen, classifier = own.backbone, own.column
    return Candidate(name, recipe, single, chosen, anatomy, taps, classifier)


def _fitting(backbone: Backbone, taps: Sequence[str]) -> tuple[str, ...]:
    """Those layers whose output can be pooled to a vector, the last in any case."""
    kept = []
    for tap in taps[:-1]:
        try:
            with_taps(backbone, [tap])
        except ConfigError:
            continue
        kept.append(tap)
    return (*kept, taps[-1])


def choose_layers(anatomy: Anatomy, count: int) -> tuple[str, ...]:
    """Choose layers over the depth of a network, in order: cuts, at about equal distances, and the penultimate layer.

    Of cuts near the same depth the one of the shortest name is taken: the end of a block rather than something in it.

    Args:
        anatomy: of the network.
        count: how many at most.
    """
    whole = max(1, anatomy.weighted[anatomy.tap])
    cuts = [name for name in anatomy.cuts if name != anatomy.tap and 0 < anatomy.weighted[name] < whole]
    chosen: list[str] = []
    for number in range(1, count):
        wish = number / count

        def far(name: str, wish: float = wish) -> tuple[float, int]:
            return round(abs(anatomy.weighted[name] / whole - wish) * 2 * count) / (2 * count), name.count(".")

        if cuts and (nearest := min(cuts, key=far)) not in chosen:
            chosen.append(nearest)
    order = {name: at for at, name in enumerate(anatomy.layers)}
    return (*sorted(chosen, key=order.__getitem__), anatomy.tap)
