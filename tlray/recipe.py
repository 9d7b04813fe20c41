"""The recipe: everything that changes an embedding's numbers, its fingerprint, and the golden vectors.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, ValidationError

from tlray.errors import GoldenMismatchError, RecipeMismatchError
from tlray.predictor import Output
from tlray.recipe_base import BaseRecipe, Strict
from tlray.recipe_base import Compute as Compute
from tlray.recipe_base import Precision as Precision
from tlray.recipe_base import Storage as Storage
from tlray.text_recipe import TextRecipe as TextRecipe

if TYPE_CHECKING:  # numpy takes as long to import as all else that `tlray --help` needs
    import numpy as np

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

GOLDEN_IMAGE_COUNT = 4
GOLDEN_TOLERANCE: dict[Compute, float] = {"fp32": 0.9999, "bf16": 0.995, "fp16": 0.999}
"""Least cosine between a machine's golden embeddings and the table's, which are always computed at fp32.

At bf16 (avx512_bf16), 27 of 28 networks of torchvision and timm that were tried with random weights came to 0.9991 or more on
the golden images; levit_128s came to 0.51, under torch's autocast alone too, and would be refused."""


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


_KINDS = ("images", "texts")


def _kind_of(document: Any) -> str:
    is_of_texts = "tokens" in document if isinstance(document, dict) else isinstance(document, TextRecipe)
    return _KINDS[is_of_texts]


AnyRecipe = Annotated[
    Annotated[Recipe, Tag(_KINDS[0])] | Annotated[TextRecipe, Tag(_KINDS[1])],
    Discriminator(_kind_of),
]
"""Of images or of texts, as their documents tell."""


def of_images(recipe: AnyRecipe) -> Recipe:
    """A recipe, where images are embedded by it.

    Raises:
        RecipeMismatchError: it is one of texts.
    """
    if isinstance(recipe, Recipe):
        return recipe
    raise RecipeMismatchError(f"{recipe.backbone} embeds texts, and images were given; give texts, or name a table of images")


class RecipeFile(Strict):
    """The document `recipe.json`, which lies beside a table's log.

    Attributes:
        recipe_id: fingerprint of `recipe`, repeated for readers that do not compute it.
        recipe: the recipe.
        shapes: per column, the shape of one embedding before it was flattened into a list.
        golden: per column, the fp32 embeddings of the golden images or texts, B rows of D floats.
        golden_text: the fp32 vectors of the golden texts, where the network has a text tower and a column shares its space.
        golden_inputs: of a table of texts, the texts that `golden` are the embeddings of.
        exact_below: at 16 bits, so many of the first layers stay at fp32; chosen when the table is made, so that all workers
            of all runs compute alike.
        output: what a table of predictions holds in place of embeddings; None for a table of embeddings.
        notes: what was assumed, left out or changed when the network's weights were read; for people.
        made_with: versions of the packages that computed `golden`.
    """

    recipe_id: str
    recipe: AnyRecipe
    shapes: dict[str, tuple[int, ...]]
    golden: dict[str, list[list[float]]]
    golden_text: list[list[float]] | None = Field(None, exclude_if=lambda rows: rows is None)
    golden_inputs: tuple[str, ...] = Field((), exclude_if=lambda texts: not texts)
    exact_below: int = Field(0, ge=0)
    output: Output | None = None
    notes: tuple[str, ...] = Field((), exclude_if=lambda notes: not notes)
    made_with: dict[str, str]

    @property
    def table_id(self) -> str:
        """What a table belongs to and its parts are marked with: the recipe, or the model that makes predictions."""
        return self.output.model_id(self.recipe_id) if self.output else self.recipe_id

    def with_weights(self, weights: str) -> "RecipeFile":
        """The same with its weights at another place: they may have moved since the table was made."""
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"weights": weights})})

    @property
    def embedding_columns(self) -> tuple[str, ...]:
        """Names of the columns of embeddings; a table of predictions may have none."""
        return self.output.embeddings if self.output else tuple(self.recipe.columns.values())

    @property
    def lengths(self) -> dict[str, int]:
        """Floats in each row of every column of numbers."""
        of_embeddings = {column: math.prod(self.shapes[column]) for column in self.embedding_columns}
        return of_embeddings | (self.output.lengths if self.output else {})

    def to_json(self) -> bytes:
        """The document as it is stored."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "RecipeFile":
        """Read a recipe file back, refusing what this version does not know.

        Raises:
            RecipeMismatchError: unknown or missing fields, or an id that is not the recipe's own.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
            raise RecipeMismatchError(
                f"{uri} is not a recipe of this version of tlray ({where}: {first['msg']}); "
                "use the version that made it, or extract to a new table"
            ) from error
        if document.recipe_id != document.recipe.recipe_id:
            raise RecipeMismatchError(
                f"{uri} was edited: its recipe_id is {document.recipe_id[:12]}, but its recipe's fingerprint is "
                f"{document.recipe.recipe_id[:12]}; restore the file, or extract to a new table"
            )
        return document


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
    for column, rows in expected.golden.items():
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
                f"{_kind_of(expected.recipe)}, expected at least {GOLDEN_TOLERANCE[compute]} at {compute}. The table was made "
                f"with {', '.join(f'{name} {version}' for name, version in expected.made_with.items())}; use those versions, "
                "or another precision or table"
            )
        least = min(least, worst)
    return least
