"""What is odd about an image, told from its pixels alone: dark, light, blurry, with little in it, grey, or of an odd shape.

Shape legend: H height, W width, C channels.
"""

import numpy as np

DARK, LIGHT = 0.08, 0.95
"""Mean brightness, of 0 to 1, below and above which a picture is called dark and light: night shots and blank pages."""

FLAT = 0.02
"""Standard deviation of brightness below which there is little to see."""

SHARPNESS = 0.0006
"""Variance of the Laplacian of brightness below which a picture that is not flat is called blurry. The measure is of
Pech-Pacheco et al. 2000 (Diatom autofocusing in brightfield microscopy), the bound a rule of thumb for pictures of some hundred
pixels."""

GREY = 0.02
"""Largest distance between a pixel's channels, in the mean, of a picture without colour."""

LONG = 3.0
SMALL_PIXELS = 32


def image_oddities(pixels_HWC: np.ndarray, width: int, height: int) -> tuple[str, ...]:
    """What is odd about an image; rules of thumb to look at pictures by, not to drop them by.

    Args:
        pixels_HWC: uint8 RGB, the image or a small copy of it.
        width: of the image itself, in pixels.
        height: likewise.

    Returns:
        Out of `dark`, `light`, `flat`, `blurry`, `grey`, `small` and `long`.
    """
    values_HWC = pixels_HWC.astype(np.float32) / 255
    brightness_HW = values_HWC @ np.array([0.299, 0.587, 0.114], np.float32)
    found = []
    mean, spread = float(brightness_HW.mean()), float(brightness_HW.std())
    found += ["dark"] if mean < DARK else ["light"] if mean > LIGHT else []
    if spread < FLAT:
        found.append("flat")
    elif sharpness(brightness_HW) < SHARPNESS:
        found.append("blurry")
    if float((values_HWC.max(axis=2) - values_HWC.min(axis=2)).mean()) < GREY:
        found.append("grey")
    if min(width, height) < SMALL_PIXELS:
        found.append("small")
    if max(width, height) > LONG * min(width, height):
        found.append("long")
    return tuple(found)


def sharpness(brightness_HW: np.ndarray) -> float:
    """Variance of the Laplacian, from each pixel's four neighbours."""
    middle = brightness_HW[1:-1, 1:-1]
    around = brightness_HW[:-2, 1:-1] + brightness_HW[2:, 1:-1] + brightness_HW[1:-1, :-2] + brightness_HW[1:-1, 2:]
    return float((around - 4 * middle).var()) if middle.size else 0.0
