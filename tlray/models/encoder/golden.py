"""Golden vectors: what a new table keeps of its network, and encoders that have shown that they compute the same."""

import logging
from collections.abc import Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version

import numpy as np
import torch

from tlray.config.commands.extraction import Engine
from tlray.errors import BackboneError, ConfigError, GoldenMismatchError
from tlray.extras import require_int8
from tlray.models.backbones.any_backbone import AnyBackbone, load_any_backbone
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder, at_fp32
from tlray.models.encoder.engines.choice import Wanted, open_image_encoder
from tlray.models.encoder.int8.encoder import open_int8_encoder
from tlray.models.encoder.network.exactness import choose_exact_below
from tlray.models.encoder.network.network import Folded
from tlray.models.encoder.text import TextEncoder, golden_text_of
from tlray.models.texts.encoder import TextRowEncoder
from tlray.models.texts.text_model import TextBackbone
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Quantization, RecipeFile, TextRecipe, check_golden, golden_images

AnyEncoder = Encoder | TextRowEncoder
"""Of images or of texts; both give the columns of a table, and turns on the cores."""

_log = logging.getLogger(__name__)

_PACKAGES = ("tlray", "torch", "torchvision", "timm")
"""Of which a table keeps the versions that computed its golden vectors, whatever its network is."""


def make_recipe_file(backbone: AnyBackbone, text_encoder: TextEncoder | None = None) -> RecipeFile:
    """What a new table keeps of its backbone: the recipe, and the golden images and texts embedded at fp32, on the CPU.

    Args:
        backbone: of images or of texts.
        text_encoder: of the backbone, where it is loaded already.

    Raises:
        BackboneError: the embeddings are not finite.
        WeightsError: the weights of its text tower are gone.
    """
    if isinstance(backbone, TextBackbone):
        return _of_texts(backbone)
    recipe = backbone.recipe
    folded = Folded.of(backbone, packed=True)
    golden = at_fp32(backbone, folded).encode(golden_images(*recipe.preprocessing.crop))
    for column, features_BD in golden.items():
        if not np.isfinite(features_BD).all():
            raise BackboneError(f"{recipe.backbone} gives {column} that is not finite; use other weights or another layer")
    quantization, exact_below = _rounding_of(backbone, folded)
    return RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes=backbone.shapes,
        golden={column: features_BD.tolist() for column, features_BD in golden.items()},
        golden_text=golden_text_of(backbone, text_encoder),
        exact_below=exact_below,
        quantization=quantization,
        notes=backbone.notes,
        made_with=_versions([*_PACKAGES, *backbone.packages, *([] if quantization is None else ["onnxruntime", "onnxscript"])]),
    )


def _rounding_of(backbone: Backbone, folded: Folded) -> tuple[Quantization | None, int]:
    """What a new table keeps of how its network is rounded: the quantization at int8, and the layers that stay at fp32."""
    if backbone.recipe.precision.compute == "int8":
        require_int8()
        from tlray.models.encoder.int8.calibration import calibrate  # needs an extra

        return calibrate(backbone, folded)
    try:
        return None, choose_exact_below(backbone, torch.device("cpu"), folded)
    except ConfigError:  # not every CPU computes at 16 bits what the workers' devices do
        return None, 0


def make_encoder(
    expected: RecipeFile,
    fetch: FetchFile,
    *,
    where: str,
    backbone: AnyBackbone | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    lanes: int | None = None,
    engine: Engine = "torch",
    images: int = 0,
) -> AnyEncoder:
    """An encoder that has shown that it computes the table's numbers.

    Args:
        expected: the table's recipe file.
        fetch: brings the URI or path of a weights file to a local path.
        where: for the message, should it not.
        backbone: already loaded; default loads it by the recipe.
        batch_size: see `Encoder`.
        device: likewise.
        lanes: likewise.
        engine: see `Wanted`; torch's takes its place where it computes other numbers than the table's.
        images: likewise.

    Raises:
        GoldenMismatchError: it computes others.
        WeightsError: the weights changed or are gone.
    """
    backbone = backbone or load_any_backbone(expected.recipe, fetch)
    opened = partial(
        open_encoder,
        backbone,
        device=device,
        batch_size=batch_size,
        exact_below=expected.exact_below,
        lanes=lanes,
        quantization=expected.quantization,
    )
    encoder = opened(engine=engine, images=images)
    if isinstance(encoder, Encoder) and encoder.engine != "torch" and expected.quantization is None:
        try:
            check_encoder(encoder, expected, where=f"{encoder.engine} in {where}")
        except GoldenMismatchError as error:
            _log.warning("torch computes %s: %s", expected.recipe.backbone, error)
            encoder = opened(engine="torch")
    check_encoder(encoder, expected, where=where)
    return encoder


def open_encoder(
    backbone: AnyBackbone,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    exact_below: int | None = None,
    lanes: int | None = None,
    engine: Engine = "torch",
    images: int = 0,
    quantization: Quantization | None = None,
) -> AnyEncoder:
    """The encoder of a backbone of images or of texts; see `Wanted`, `open_int8_encoder` and `TextRowEncoder`."""
    if isinstance(backbone, TextBackbone):
        return TextRowEncoder(backbone, device=device, batch_size=batch_size, lanes=lanes)
    if backbone.recipe.precision.compute == "int8":
        return open_int8_encoder(backbone, quantization, exact_below or 0, device=device, lanes=lanes)
    return open_image_encoder(backbone, Wanted(engine, device, batch_size, exact_below, lanes, images))


def check_encoder(encoder: AnyEncoder, expected: RecipeFile, *, where: str) -> float:
    """Hold what an encoder makes of the golden images or texts against the table's; see `tlray.recipe.check_golden`."""
    recipe = expected.recipe
    inputs = (
        np.array(expected.golden_inputs, object)
        if isinstance(recipe, TextRecipe)
        else golden_images(*recipe.preprocessing.crop)
    )
    return check_golden(expected, encoder.encode(inputs), where=where)


def _of_texts(backbone: TextBackbone) -> RecipeFile:
    """What a new table of texts keeps: the recipe, and texts of the model's own choice with their embeddings."""
    recipe, texts = backbone.recipe, backbone.model.examples()
    found = TextRowEncoder(backbone, device="cpu").encode(texts)
    golden = {column: found[column] for column in recipe.columns.values()}
    if not all(np.isfinite(features_BD).all() for features_BD in golden.values()):
        raise BackboneError(f"{recipe.backbone} gives vectors that are not finite; use other weights")
    return RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes=backbone.shapes,
        golden={column: features_BD.tolist() for column, features_BD in golden.items()},
        golden_inputs=texts,
        notes=backbone.notes,
        made_with=_versions(["tlray", "torch", *backbone.model.packages]),
    )


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages; of one that is installed under another name, by that name (onnxruntime as onnxruntime-gpu)."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions |= {name: version(name) for name in packages_distributions()[package]}
    return versions
