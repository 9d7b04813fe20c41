"""The classifier that a pretrained network came with: where its scores come out, and what they stand for.

Shape legend: B images, H height, W width, C channels, K classes.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from tlray.errors import BackboneError, ConfigError
from tlray.models.backbones.images import Backbone, probe_of, with_taps
from tlray.models.layers.taps import TapRunner, find_default_tap
from tlray.models.weights.spec import WeightsSpec

TOLERANCE = 1e-4
"""Largest distance of the tapped scores to the network's own, relative to the largest of them: rounding alone."""

_PROBABILITIES = 0.02
"""How far from 1 the sum of probabilities may be: some networks round them to 8 bits."""


@dataclass(frozen=True)
class OwnClassifier:
    """A network that is used as it came.

    Attributes:
        backbone: its recipe has the layer that gives the scores as its last tap.
        column: the scores' among the features.
        embeddings: the other taps' columns.
        classes: names of the K outputs.
    """

    backbone: Backbone
    column: str
    embeddings: tuple[str, ...]
    classes: tuple[str, ...]


def own_classifier(backbone: Backbone, *, keep_embeddings: bool) -> OwnClassifier:
    """Find where the scores of a network's own classifier come out.

    Args:
        backbone: as the user asks for it; its taps are embeddings.
        keep_embeddings: keep these too; otherwise only scores come out.

    Raises:
        ConfigError: the recipe changes the scores, they are no layer's output, or there is no classifier.
    """
    recipe = backbone.recipe
    if backbone.classes is not None and not backbone.classes:
        raise ConfigError(
            f"{recipe.backbone} has no classifier that tells classes apart, so it gives no scores; train a head (tlray train)"
        )
    if recipe.normalize:
        raise ConfigError("recipe.normalize divides a classifier's scores too; leave it out, or train a head (tlray train)")
    if not keep_embeddings:
        backbone = replace(backbone, recipe=recipe.model_copy(update={"pool": "avg"}))  # scores are not pooled
    images_BCHW = probe_of(recipe.preprocessing)
    with torch.inference_mode():
        scores = backbone.module(images_BCHW)
        _check_values(backbone, scores)
        _check_logits(backbone, scores)
        try:
            tap = find_default_tap(backbone.module, (), images_BCHW)
        except BackboneError as error:
            raise ConfigError(
                f"{recipe.backbone} puts its scores together from several layers, so no layer gives them; use another backbone"
            ) from error
    taps = [name for name in recipe.taps if name != tap] if keep_embeddings else []
    scoring = with_taps(backbone, [*taps, tap])
    columns = scoring.recipe.columns
    _check_scores(scoring, tap, images_BCHW, scores)
    classes = _classes(scoring, math.prod(scoring.shapes[columns[tap]]))
    return OwnClassifier(scoring, columns[tap], tuple(columns[name] for name in taps), classes)


def _check_values(backbone: Backbone, scores: object) -> None:
    """Refuse a network whose weights came without a classifier: what is there has no values."""
    if backbone.unfilled and isinstance(scores, Tensor) and not bool(scores.isfinite().all()):
        raise ConfigError(
            f"the weights {backbone.recipe.weights} have no classifier for {backbone.recipe.backbone} "
            f"({', '.join(backbone.unfilled[:2])} missing), so they give no scores; train a head (tlray train), or use others"
        )


def _check_logits(backbone: Backbone, scores: object) -> None:
    """Refuse scores that are probabilities already: another softmax would make them alike."""
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] < 2:
        return
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() <= _PROBABILITIES).all()):
        raise ConfigError(
            f"{backbone.recipe.backbone} gives probabilities, and the layer before its softmax is not to be seen; train a head "
            "(tlray train)"
        )


def _check_scores(backbone: Backbone, tap: str, images_BCHW: Tensor, scores: Tensor) -> None:
    """Pooling may change what is not one number a class yet."""
    recipe = backbone.recipe
    runner = TapRunner(backbone.module, (tap,), backbone.pooling)
    with torch.inference_mode():
        kept = runner(images_BCHW)[tap].flatten(1)
    if kept.shape != scores.shape or not (kept - scores).abs().max() <= TOLERANCE * scores.abs().max():
        raise ConfigError(
            f"recipe.pool {recipe.pool} changes the scores of {recipe.backbone}, which come as "
            f"{tuple(kept.shape[1:])} from {tap}; use pool avg"
        )


def _classes(backbone: Backbone, outputs: int) -> tuple[str, ...]:
    """Names by the library that published the weights; of other weights torchvision's names for 1,000 ImageNet classes."""
    names = backbone.classes
    imagenet: list[str] = ResNet50_Weights.DEFAULT.meta["categories"]
    if names is None and outputs == len(imagenet) and WeightsSpec.parse(backbone.recipe.weights).kind != "random":
        names = imagenet
    if names is None or len(names) != outputs:
        return tuple(str(index) for index in range(outputs))
    return tuple(str(name) for name in names)
