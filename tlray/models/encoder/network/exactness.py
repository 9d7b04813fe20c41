"""Which layers stay at fp32 under a recipe of 16 bits: chosen once for a table, kept in its recipe file.

Shape legend: B images, H height, W width, C channels.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch

from tlray.models.backbones.images import Backbone
from tlray.models.encoder.network.network import Folded
from tlray.models.encoder.network.precision import count_layers
from tlray.models.process.device import computes_as, precision
from tlray.models.process.sums import SumsAtFp32
from tlray.recipe import Compute, golden_images, least_cosine

CLOSE_COSINE = 0.99985
"""Least cosine to fp32 that every probe keeps at 16 bits. Chosen where a trained tf_efficientnet_lite0 tells digits and photos
apart as it does at fp32; docs/benchmarks.md has the table. What counts is what the first layers put out: rounding the
activations alone, at every layer, does as much harm, and no better rounding of the weights mends that."""

STEPS = 8
"""The layers that stay at fp32 are a multiple of so many-th parts of all."""

LONG_SECONDS = 2.0
"""What the probes take at fp32, from which on it is said that layers are chosen, which takes two to ten times as long."""

PROBE_NOISE = 40
"""Levels of noise on the second part of the probes: the golden images themselves are smooth."""

_log = logging.getLogger(__name__)


def choose_exact_below(backbone: Backbone, device: torch.device, folded: Folded | None = None) -> int:
    """How many of the first layers `precision.lower` is to leave at fp32, by what it does to the probes.

    Args:
        backbone: of the recipe.
        device: to lower it on; where it has no arithmetic for the recipe's precision, that is emulated, as what is chosen is
            kept in the table, for other machines too.
        folded: the same backbone, packed, where it is folded already.

    Returns:
        The least multiple of an eighth of all layers with which every probe keeps CLOSE_COSINE, found by bisection.

    Raises:
        ConfigError: the device cannot compute the recipe's precision.
    """
    compute = backbone.recipe.precision.compute
    if compute == "fp32":
        return 0
    folded = folded or Folded.of(backbone, packed=True)
    # Those on which rounding shows most come first: the others are not needed where these are not close.
    parts_BHWC = [torch.from_numpy(part_BHWC) for part_BHWC in probe_parts(*backbone.recipe.preprocessing.crop)[::-1]]

    def embed(device: torch.device, compute: Compute, exact_below: int) -> Iterator[list[np.ndarray]]:
        network = folded.network(device, compute, exact_below)  # tensors made in inference mode could not be traced later
        emulated = computes_as(device, compute) != compute
        for part_BHWC in parts_BHWC:
            sums = SumsAtFp32() if emulated else nullcontext()  # type: ignore[no-untyped-call]
            with precision(device, compute), torch.inference_mode(), sums:
                features = network(part_BHWC.to(device))
            yield [features_BD.cpu().numpy() for features_BD in features]

    began = time.monotonic()
    expected = list(embed(torch.device("cpu"), "fp32", 0))
    if time.monotonic() - began >= LONG_SECONDS:
        _log.info("choosing which layers of %s stay at fp32", backbone.recipe.backbone)
    layers = count_layers(folded.module)

    def is_close(exact_below: int) -> bool:
        found = embed(device, compute, exact_below)
        pairs = (pair for parts in zip(found, expected, strict=True) for pair in zip(*parts, strict=True))
        return all(least_cosine(*pair) >= CLOSE_COSINE for pair in pairs)

    return least_exact_below(layers, is_close)


def least_exact_below(layers: int, is_close: Callable[[int], bool], *, at_least: int = 0) -> int:
    """The least number of first layers at fp32 with which a network is close to itself at fp32, by bisection.

    Args:
        layers: that it has; 0 where there is nothing to choose.
        is_close: with so many layers at fp32; at more of them, if at fewer. Not asked of all of them.
        at_least: so many in any case.

    Returns:
        `at_least`, or a multiple of an eighth of all.
    """
    steps = [layers * step // STEPS for step in range(1, STEPS + 1) if layers * step // STEPS > at_least]
    if not steps or is_close(at_least):
        return at_least
    return steps[bisect_left(steps, True, hi=len(steps) - 1, key=is_close)]


def probe_images(height: int, width: int) -> np.ndarray:
    """All of `probe_parts` as one batch."""
    return np.concatenate(probe_parts(height, width))


def probe_parts(height: int, width: int) -> list[np.ndarray]:
    """Pictures on which rounding shows: the golden images, the same with noise, and even areas with sharp edges.

    In even areas, of which drawings and scans have most, rounding errors are everywhere the same: no pooling averages them out.

    Args:
        height: in pixels.
        width: likewise.

    Returns:
        images_BHWC, uint8, of each of the three kinds.
    """
    golden_BHWC = golden_images(height, width)
    noise_BHWC = np.random.default_rng(0).integers(-PROBE_NOISE, PROBE_NOISE, golden_BHWC.shape)
    noisy_BHWC = (golden_BHWC + noise_BHWC).clip(0, 255).astype(np.uint8)
    even_BHWC = np.empty_like(golden_BHWC)
    for image_HWC, (ground, ink) in zip(even_BHWC, ((255, 0), (0, 255), (128, 192), (230, 64)), strict=True):
        image_HWC[:] = ground
        image_HWC[height // 4 : height // 2, width // 3 : 2 * width // 3] = ink
        image_HWC[5 * height // 8 : 7 * height // 8, width // 12 : width // 4] = (ground + ink) // 2
    return [golden_BHWC, noisy_BHWC, even_BHWC]
