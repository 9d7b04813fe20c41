"""Query images to vectors, by the recipe that made the index's table."""

from collections.abc import Sequence

import numpy as np

from tlray.lake.image.decode import decode_image
from tlray.lake.storage.local_copy import local_copy
from tlray.models.encoder.golden import make_encoder
from tlray.recipe import RecipeFile

MAX_IMAGE_PIXELS = 256_000_000


class QueryEncoder:
    """Embeds images one by one, and has shown that it computes the table's numbers.

    Args:
        recipe_file: the index's.
        column: the embedding column that the index is of.
        max_image_pixels: larger images are not decoded.

    Raises:
        GoldenMismatchError: this machine computes other numbers.
        WeightsError: the weights changed or are gone.
    """

    def __init__(self, recipe_file: RecipeFile, column: str, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> None:
        self._recipe = recipe_file.recipe
        self._column = column
        self._max_image_pixels = max_image_pixels
        self._encoder = make_encoder(recipe_file, local_copy, where="this machine", batch_size=1)

    def embed(self, images: Sequence[bytes]) -> np.ndarray:
        """Embed images.

        Args:
            images: each a file's bytes.

        Returns:
            features_BD, float32.

        Raises:
            ImageError: one of them cannot be used.
        """
        recipe = self._recipe
        pixels = [
            decode_image(data, recipe.preprocessing, max_pixels=self._max_image_pixels, image_rule=recipe.image_rule).pixels_HWC
            for data in images
        ]
        return self._encoder.encode(np.stack(pixels))[self._column]
