"""Random crops and mirror images of decoded images, the same for an image in an epoch whoever makes them.

Shape legend: B images, H height, W width, C channels.
"""

from collections.abc import Collection
from typing import Literal

import numpy as np

from tlray.recipe import Preprocessing

Kind = Literal["crop", "flip"]

SHIFT = 8
"""Crops move by at least 1 / SHIFT of a side each way, as in He et al. 2016 (arXiv 1512.03385, section 4.2: 4 of 32 pixels)."""


def canvas_of(preprocessing: Preprocessing, kinds: Collection[Kind]) -> Preprocessing:
    """How images are decoded so that random crops can be cut from them.

    As much more of the resized image as there is, such that its centre crop has the very pixels of the usual one: an offset
    that is rounded to even stays so where an even number is added, so the margins of both sides make a multiple of four.
    """
    if "crop" not in kinds or preprocessing.resize is None or preprocessing.fit == "contain":
        return preprocessing
    height, width = (
        crop + max(0, resize - crop) // 4 * 4 for resize, crop in zip(preprocessing.resize, preprocessing.crop, strict=True)
    )
    return preprocessing.model_copy(update={"crop": (height, width)})


def centre(images_BHWC: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The centre crop (height, width) of canvases; a view."""
    top, left = (images_BHWC.shape[1] - crop[0]) // 2, (images_BHWC.shape[2] - crop[1]) // 2
    return images_BHWC[:, top : top + crop[0], left : left + crop[1]]


def augment(
    images_BHWC: np.ndarray, numbers_B: np.ndarray, crop: tuple[int, int], kinds: Collection[Kind], *, seed: int, epoch: int
) -> np.ndarray:
    """Cut random crops from canvases, mirrored or not.

    Args:
        images_BHWC: canvases, uint8.
        numbers_B: the images' numbers; with seed and epoch they are all that the result depends on.
        crop: height and width.
        kinds: `crop` moves the crop (repeating the border where it leaves the canvas), `flip` mirrors half of the images.
        seed: of the training.
        epoch: likewise.
    """
    result_BHWC = np.empty((len(images_BHWC), *crop, 3), np.uint8)
    for image_HWC, number, out_HWC in zip(images_BHWC, numbers_B, result_BHWC, strict=True):
        random = np.random.default_rng((seed, epoch, int(number)))
        rows_H, columns_W = (
            _positions(canvas, side, random, moves="crop" in kinds)
            for canvas, side in zip(image_HWC.shape[:2], crop, strict=True)
        )
        if "flip" in kinds and random.random() < 0.5:
            columns_W = columns_W[::-1]
        np.take(image_HWC[rows_H], columns_W, axis=1, out=out_HWC)
    return result_BHWC


def _positions(canvas: int, side: int, random: np.random.Generator, *, moves: bool) -> np.ndarray:
    """Which rows or columns of a canvas a crop has."""
    middle = (canvas - side) // 2
    reach = max(middle, side // SHIFT)
    start = middle + (int(random.integers(-reach, reach, endpoint=True)) if moves else 0)
    return np.clip(np.arange(start, start + side), 0, canvas - 1)
