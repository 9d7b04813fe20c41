"""Calibration: what a new table at int8 keeps, found on images that only this package defines.

Shape legend: B images, D embedding length.
"""

import logging
from functools import cache

import numpy as np

from tlray.errors import BackboneError
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import at_fp32
from tlray.models.encoder.int8.document import Int8Document
from tlray.models.encoder.network.exactness import least_exact_below, probe_images
from tlray.models.encoder.network.network import Folded
from tlray.recipe import GOLDEN_IMAGE_COUNT, Quantization, digest_of, least_cosine

LEAST_COSINE = 0.98
"""Of every probe's embedding to that at fp32. Chosen between networks that round well and one that does not; docs/benchmarks.md
has what was measured."""

MOST_EXACT = 0.5
"""The part of the layers that may stay at fp32 for that: with more of them little is left to gain."""

_log = logging.getLogger(__name__)


def calibrate(backbone: Backbone, folded: Folded | None = None) -> tuple[Quantization, int]:
    """Find how a network is rounded, on the probe images, which begin with the golden ones.

    Args:
        backbone: of a recipe at int8.
        folded: see `Encoder`.

    Returns:
        What the table keeps, and how many of the first layers stay at fp32 (`RecipeFile.exact_below`): the least multiple of an
        eighth of all with which every probe keeps LEAST_COSINE.

    Raises:
        BackboneError: it takes more than MOST_EXACT of them, or the network cannot be converted.
    """
    recipe = backbone.recipe
    probes_BHWC = probe_images(*recipe.preprocessing.crop)
    at_full = at_fp32(backbone, folded).encode(probes_BHWC)
    expected = [at_full[column] for column in recipe.columns.values()]
    document = Int8Document(backbone)
    ranges = document.ranges(probes_BHWC)

    @cache
    def found(exact_below: int) -> list[np.ndarray]:
        return document.embed(ranges, exact_below, probes_BHWC)

    def cosine(exact_below: int) -> float:
        return min(least_cosine(*pair) for pair in zip(found(exact_below), expected, strict=True))

    most = int(document.layers * MOST_EXACT)
    exact_below = least_exact_below(document.layers, lambda layers: layers > most or cosine(layers) >= LEAST_COSINE)
    if exact_below > most or not (least := cosine(exact_below)) >= LEAST_COSINE:
        raise BackboneError(
            f"{recipe.backbone} computes too different embeddings at int8: least cosine to fp32 {cosine(most):.4f} over the "
            f"probe images with {most} of its {document.layers} layers at fp32, expected at least {LEAST_COSINE}; use "
            "recipe.precision.compute bf16 or fp32, or another backbone"
        )
    _log.info(
        "%s at int8: least cosine to fp32 %.4f over the probe images, with %d of %d layers at fp32",
        *(recipe.backbone, least, exact_below, document.layers),
    )
    golden = {
        column: features_BD[:GOLDEN_IMAGE_COUNT].tolist()
        for column, features_BD in zip(recipe.columns.values(), found(exact_below), strict=True)
    }
    return Quantization(ranges=ranges, sha256=digest_of(ranges), golden=golden, least_cosine=least), exact_below
