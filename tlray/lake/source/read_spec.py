"""How the items of a source become pixels or texts; the same for driver and workers."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.lake.image.decode import decode_image
from tlray.lake.source.source import Kind, Source
from tlray.lake.source.texts.decode import decode_text
from tlray.recipe import IMAGE_RULE, ImageRule, Preprocessing

BATCH_BYTES = 64 * 2**20
"""Pixels of a batch: half of Ray Data's target block, so that two are in flight where one block would be."""

MOST_BATCH_IMAGES = 512
MOST_BATCH_TEXTS = 4096
"""Texts of a unit: their vectors fill a part of a few MB."""


class ReadSpec(BaseModel):
    """What it takes to turn a source's items into pixels or texts; crosses to workers as JSON.

    Attributes:
        kind: what an item is: an image, or a file that holds images.
        source: its labels, columns and limits.
        preprocessing: from an image to network input; only the geometry happens here. None where items are texts.
        trust_listing: the listing's etag is a version that the user keeps (a manifest's), not the store's own.
        image_rule: version of the rule from bytes to pixels, from the recipe.
        columns: that travel, and whose values rows have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    source: SourceConfig
    preprocessing: Preprocessing | None
    trust_listing: bool
    image_rule: ImageRule = IMAGE_RULE
    columns: tuple[Column, ...] = ()

    @classmethod
    def of(
        cls,
        source: Source,
        preprocessing: Preprocessing | None,
        image_rule: ImageRule = IMAGE_RULE,
        columns: tuple[Column, ...] = (),
    ) -> Self:
        """The spec for the items that a source lists."""
        return cls(
            kind=source.kind,
            # The texts of rows travel as UTF-8, however their file is encoded.
            source=source.config.model_copy(update={"encoding": "utf-8"}) if source.format == "rows" else source.config,
            preprocessing=preprocessing,
            trust_listing=source.format == "manifest",
            image_rule=image_rule,
            columns=columns,
        )

    @property
    def batch_images(self) -> int:
        """Most images that are decoded into one batch."""
        if self.preprocessing is None:
            return MOST_BATCH_TEXTS
        height, width = self.preprocessing.crop
        return max(1, min(MOST_BATCH_IMAGES, BATCH_BYTES // (height * width * 3)))

    def room(self, count: int) -> np.ndarray:
        """Room for so many decoded items: images_BHWC, uint8, or texts_B, objects."""
        if self.preprocessing is None:
            return np.empty(count, object)
        return np.empty((count, *self.preprocessing.crop, 3), np.uint8)

    def decode(self, data: bytes) -> tuple[np.ndarray | str, dict[str, int]]:
        """Pixels_HWC of an image and its size by column, or a text.

        Raises:
            ImageError: it cannot be used.
        """
        if self.preprocessing is None:
            return decode_text(data, self.source.encoding), {}
        limit = self.source.max_image_pixels
        decoded = decode_image(data, self.preprocessing, max_pixels=limit, image_rule=self.image_rule)
        return decoded.pixels_HWC, {"width": decoded.width, "height": decoded.height}
