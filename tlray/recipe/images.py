"""The recipe of a table of images: everything that changes an embedding's numbers."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from tlray.recipe.base import BaseRecipe, Strict

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Fit = Literal["cover", "contain", "squash"]
Pool = Literal["avg", "max", "gem", "cls", "flatten", "none"]
Channels = Literal["rgb", "bgr"]
CropOffset = Literal["round", "floor"]
Level = Annotated[int, Field(ge=0, le=255)]

ImageRule = Literal[2, 3]
"""Versions of the rule that can still be followed."""

IMAGE_RULES: tuple[ImageRule, ...] = (3, 2)
"""All of them, the newest first."""

IMAGE_RULE: ImageRule = 3
"""The newest version of the rule in `tlray.lake.image.decode` that brings any image to RGB uint8; a change of pixels raises it.

1 resized by Pillow's filters alone. 2 left out AVIF's clean aperture, and alpha that a WebP file does not announce, as what an
animation's first frame leaves open. New tables are made by the newest rule; what was made by 2 goes on with 2."""

UNIT_SCALE = (0.0, 1.0)
"""Levels as most networks take them, before mean and std."""


class Preprocessing(Strict):
    """From an RGB uint8 image to the backbone's input.

    Attributes:
        resize: the box (height, width) in pixels that `fit` refers to, or None to leave the size.
        fit: `cover` keeps the ratio and fills the box (for a square box: the shortest side, as torchvision does it);
            `contain` keeps the ratio and stays inside it; `squash` takes exactly the box.
        crop: (height, width) cut from the centre, padded with `fill` where the image is smaller.
        crop_offset: what half of an odd number of pixels left over becomes, where the crop begins: `round` (half to even), as
            torchvision and timm have it, or `floor`, as transformers has it.
        fill: RGB of the padding.
        interpolation: the resampling filter.
        antialias: widen the filter when shrinking (Pillow's own resize always does).
        scaled_decoding: decode large JPEGs at 1/2, 1/4 or 1/8 of their size (`tlray.lake.image.scaled_decoding`): faster, and
            other pixels by a few levels.
        channels: the order in which the network takes them; changed on the device.
        scale: what the levels 0 and 255 become, on the device, before mean and std: (0, 1) for most networks, (-1, 1) for
            Keras' mode `tf`, (0, 255) for its mode `caffe`.
        mean: per channel in the order of `channels`, of values in `scale`, subtracted on the device.
        std: likewise, divided by on the device.

    Fields that came later than others are left out of documents where they have their default, so that a recipe made before
    them keeps its fingerprint.
    """

    resize: tuple[PositiveInt, PositiveInt] | None
    fit: Fit = "cover"
    crop: tuple[PositiveInt, PositiveInt]
    crop_offset: CropOffset = Field("round", exclude_if=lambda offset: offset == "round")
    fill: tuple[Level, Level, Level] = (0, 0, 0)
    interpolation: Interpolation
    antialias: bool = True
    scaled_decoding: bool = False
    channels: Channels = Field("rgb", exclude_if=lambda channels: channels == "rgb")
    scale: tuple[float, float] = Field(UNIT_SCALE, exclude_if=lambda scale: scale == UNIT_SCALE)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Recipe(BaseRecipe):
    """Everything that changes an image's embedding; frozen, strict, versioned.

    Attributes:
        pool: how a map or a sequence becomes a vector.
        preprocessing: pixels to network input.
        image_rule: version of the rule from bytes to RGB uint8.
        format: version of this document; 2 where the preprocessing has fields that 1 did not know.
    """

    pool: Pool = "avg"
    preprocessing: Preprocessing
    image_rule: ImageRule = IMAGE_RULE
    format: Literal[1, 2] = Field(default_factory=lambda fields: _format_of(fields))

    def under_rule(self, image_rule: ImageRule) -> "Recipe":
        """The same recipe with another version of the rule from bytes to pixels."""
        return self if self.image_rule == image_rule else self.model_copy(update={"image_rule": image_rule})

    def under_rule_of(self, there: BaseRecipe) -> "Recipe":
        """The same recipe with another one's version of that rule."""
        return self.under_rule(there.image_rule) if isinstance(there, Recipe) else self


def _format_of(fields: dict[str, Any]) -> Literal[1, 2]:
    preprocessing: Preprocessing | None = fields.get("preprocessing")  # None where it is not valid
    if preprocessing is None:
        return 1
    later = (preprocessing.channels, preprocessing.scale, preprocessing.crop_offset)
    return 1 if later == ("rgb", UNIT_SCALE, "round") else 2
