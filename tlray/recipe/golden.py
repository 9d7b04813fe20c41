"""Golden images and texts: what every machine embeds first, to find out whether it computes what a table holds.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import hashlib
from typing import TYPE_CHECKING

from tlray.errors import GoldenMismatchError
from tlray.recipe.base import Compute
from tlray.recipe.file import RecipeFile, kind_of

if TYPE_CHECKING:  # numpy takes as long to import as all else that `tlray --help` needs
    import numpy as np

GOLDEN_IMAGE_COUNT = 4
GOLDEN_TOLERANCE: dict[Compute, float] = {"fp32": 0.9999, "bf16": 0.995, "fp16": 0.999, "int8": 0.999}
"""Least cosine between a machine's golden embeddings and the table's, which are computed at fp32, but at int8 where a table is.

At bf16 (avx512_bf16), 27 of 28 networks of torchvision and timm that were tried with random weights came to 0.9991 or more on
the golden images; levit_128s came to 0.51, under torch's autocast alone too, and would be refused."""


def golden_images(height: int, width: int) -> "np.ndarray":
    """The golden images: pictures that only this function defines, the same on every machine for ever.

    Smooth colour fields with sharp rectangles, in integer arithmetic on the output of SHAKE-256, so that no library's
    random generator or resampling can change them.

    Args:
        height: of the backbone's input, in pixels.
        width: likewise.

    Returns:
        images_BHWC, uint8, B = GOLDEN_IMAGE_COUNT.
    """
    import numpy as np

    images_BHWC = np.empty((GOLDEN_IMAGE_COUNT, height, width, 3), np.uint8)
    rows_H = (np.arange(height) * 1024 // height)[:, None, None]
    columns_W = (np.arange(width) * 1024 // width)[None, :, None]
    for index in range(GOLDEN_IMAGE_COUNT):
        seed = np.frombuffer(hashlib.shake_256(b"tlray golden %d" % index).digest(256), np.uint8).astype(np.int64)
        corners = seed[:12].reshape(4, 1, 1, 3)
        field = (
            corners[0] * (1024 - rows_H) * (1024 - columns_W)
            + corners[1] * (1024 - rows_H) * columns_W
            + corners[2] * rows_H * (1024 - columns_W)
            + corners[3] * rows_H * columns_W
        ) >> 20
        image_HWC = field.astype(np.uint8)
        for rectangle in seed[12:].reshape(-1, 4)[:24]:
            top, left = rectangle[0] * height // 256, rectangle[1] * width // 256
            bottom, right = top + 1 + rectangle[2] * height // 768, left + 1 + rectangle[3] * width // 768
            image_HWC[top:bottom, left:right] = np.roll(rectangle[:3], int(rectangle[3]) % 3).astype(np.uint8)
        images_BHWC[index] = image_HWC
    return images_BHWC


def golden_texts() -> tuple[str, ...]:
    """The golden texts: sentences by which a text tower and its tokeniser are checked, the same on every machine for ever.

    With capitals, digits, signs and letters that tokenisers treat differently.
    """
    return (
        "a photo of a cat",
        "A RED bicycle, leaning against the old wall.",
        "two dogs playing in the snow; 1,234 footprints & 56% clouds",
        'Ein Mädchen liest im Café -- "größer"  als das   Zimmer!',
    )


def least_cosine(ours_BD: "np.ndarray", theirs_BD: "np.ndarray") -> float:
    """The least cosine of rows that belong together; not a number where one is not finite."""
    import numpy as np

    ours_BD, theirs_BD = ours_BD.astype(np.float64), theirs_BD.astype(np.float64)
    norms_B = np.linalg.norm(ours_BD, axis=1) * np.linalg.norm(theirs_BD, axis=1)
    return float(np.min((ours_BD * theirs_BD).sum(axis=1) / np.maximum(norms_B, np.finfo(np.float64).tiny)))


def check_golden(expected: RecipeFile, golden: "dict[str, np.ndarray]", *, where: str) -> float:
    """Compare this machine's embeddings of the golden images or texts with the table's.

    Args:
        expected: the table's recipe file.
        golden: per column, features_BD of the golden images or texts.
        where: what computed them, for the message.

    Returns:
        The least cosine seen.

    Raises:
        GoldenMismatchError: a cosine is under the tolerance of the recipe's compute precision, or is not a number.
    """
    import numpy as np

    compute = expected.recipe.precision.compute
    least = 1.0
    for column, rows in expected.reference.items():
        ours_BD, theirs_BD = golden[column], np.asarray(rows, np.float64)
        if ours_BD.shape != theirs_BD.shape:
            raise GoldenMismatchError(
                f"{where} gives {column} of shape {ours_BD.shape[1:]}, but the table holds {theirs_BD.shape[1:]}; "
                f"use the versions of {', '.join(expected.made_with)} that made the table, or extract to a new table"
            )
        worst = least_cosine(ours_BD, theirs_BD)
        if not worst >= GOLDEN_TOLERANCE[compute]:
            raise GoldenMismatchError(
                f"{where} computes other embeddings than the table holds: least cosine {worst:.6f} over the golden "
                f"{kind_of(expected.recipe)}, expected at least {GOLDEN_TOLERANCE[compute]} at {compute}. The table was made "
                f"with {', '.join(f'{name} {version}' for name, version in expected.made_with.items())}; use those versions, "
                "or another precision or table"
            )
        least = min(least, worst)
    return least
