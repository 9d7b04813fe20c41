"""Query images to vectors, by the recipe that made the index's table."""

from collections.abc import Sequence

import numpy as np

from tlray.lake.image.decode import decode_image
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import load_backbone
from tlray.models.encoder.golden import check_encoder, open_encoder
from tlray.recipe import RecipeFile, of_images

MAX_IMAGE_PIXELS = 256_000_000


class QueryEncoder:
    """Embeds images one by one, and has shown that it computes the table's numbers.

    Args:
        recipe_file: the index's.
        column: the embedding column that the index is of.
        max_image_pixels: larger images are not decoded.
        lanes: on a CPU, images that are embedded at once, each by the thread that asks, on one core; default one image at a
            time, on all cores.

    Raises:
        GoldenMismatchError: this machine computes other numbers.
        WeightsError: the weights changed or are gone.
    """

    def __init__(
        self, recipe_file: RecipeFile, column: str, *, max_image_pixels: int = MAX_IMAGE_PIXELS, lanes: int | None = None
    ) -> None:
        self._recipe = of_images(recipe_file.recipe)
        self._column = column
        self._max_image_pixels = max_image_pixels
        backbone = load_backbone(self._recipe, local_copy)
        self._encoder = open_encoder(
            backbone,
            batch_size=1,
            exact_below=recipe_file.exact_below,
            lanes=lanes,
            quantization=recipe_file.quantization,
        )
        with self._encoder.turn():
            check_encoder(self._encoder, recipe_file, where="this machine")

    def embed(self, images: Sequence[bytes]) -> np.ndarray:
        """Decode and embed images that are queries.

        Args:
            images: each a file's bytes.

        Returns:
            features_BD, float32.

        Raises:
            ImageError: one of them cannot be used.
        """
        return self.encode(np.stack([self.decode(data, max_pixels=self._max_image_pixels) for data in images]))

    def decode(self, data: bytes, *, max_pixels: int) -> np.ndarray:
        """An image as the network takes it.

        Args:
            data: a file's bytes.
            max_pixels: an image that declares more is not decoded.

        Returns:
            pixels_HWC, uint8.

        Raises:
            ImageError: it cannot be used.
        """
        recipe = self._recipe
        return decode_image(data, recipe.preprocessing, max_pixels=max_pixels, image_rule=recipe.image_rule).pixels_HWC

    def encode(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """Embed images that are decoded already; features_BD, float32."""
        with self._encoder.turn():
            return self._encoder.encode(pixels_BHWC)[self._column]
