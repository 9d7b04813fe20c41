"""Loading a network of transformers: its image side now, its text side when it is asked for."""

import json
from collections.abc import Sequence
from functools import partial

from transformers import PretrainedConfig

from tlray.errors import BackboneError, ConfigError, first_line
from tlray.models.libraries.huggingface.checkpoint.build import OUR_PREFIX, build
from tlray.models.libraries.huggingface.checkpoint.files import CONFIG
from tlray.models.libraries.huggingface.checkpoint.source import Source, find_source
from tlray.models.libraries.huggingface.network import CLASS_TOKEN, VisionNetwork
from tlray.models.libraries.huggingface.processor import read_preprocessing
from tlray.models.libraries.huggingface.text import open_text_tower
from tlray.models.libraries.huggingface.towers import TWO_TOWERS, image_class
from tlray.models.libraries.library import Pretrained, Request, TextSide
from tlray.models.weights.digest import hash_tensors
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Preprocessing

_FORWARD_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError)

_UNSAID = ("fit", "channels", "scale")
"""What of the preparation nobody has to say."""

_UNKNOWN_SIDE = 224
"""Pixels of images where neither the user, the image processor nor the model says it: of models that take any size."""


def load(request: Request, fetch: FetchFile) -> Pretrained:
    """A network with its weights; see `tlray.models.libraries.library.Library.load`."""
    source = find_source(request, fetch)
    kind, config = image_class(source.config, source.weights)
    if getattr(config, "num_channels", 3) != 3:
        raise BackboneError(f"{source.weights} takes images of {config.num_channels} channels; expected RGB")
    built = build(source, kind, config)
    preprocessing, assumed = _preprocessing(request, source, config)
    crop = request.crop or preprocessing.crop
    try:
        network = VisionNetwork(built.model, crop).eval()
    except _FORWARD_ERRORS as error:
        usual = preprocessing.crop
        raise ConfigError(
            f"{source.backbone} cannot take images of crop {crop[0]}x{crop[1]}; expected {usual[0]}x{usual[1]}, as its files "
            f"say, or a size that its patches divide: {first_line(error)}"
        ) from error
    unfilled = {f"{OUR_PREFIX}{name}" for name in built.unfilled}
    towers = TWO_TOWERS.get(source.config.model_type)
    shared = towers.shared if towers else None
    return Pretrained(
        backbone=source.backbone,
        weights=source.weights,
        weights_sha256=hash_tensors((name, tensor) for name, tensor in network.state_dict().items() if name not in unfilled),
        module=network,
        preprocessing=preprocessing,
        layout=network.layout,
        default_tap=shared or _default_tap(network),
        classifiers=(),
        unfilled=sorted(unfilled),
        misfit=built.misfit,
        text_tower=partial(open_text_tower, source) if towers and built.has_text else None,
        text_tap=shared,
        files={CONFIG: json.dumps(source.files.config() if source.files else source.config.to_dict()).encode()},
        packages=("transformers", "tokenizers") if towers else ("transformers",),
        notes=(*built.notes, *assumed),
    )


def text_side(request: Request, fetch: FetchFile) -> TextSide | None:
    """A network's text side; see `tlray.models.libraries.library.LibraryOfTexts.text_side`."""
    source = find_source(request, fetch)
    towers = TWO_TOWERS.get(source.config.model_type)
    return TextSide(towers.shared, partial(open_text_tower, source)) if towers else None


def _default_tap(network: VisionNetwork) -> str:
    """What the model's authors made to stand for an image: its pooled output, where the weights fill it, or the class token."""
    if "pooler_output" in network.finite:
        return "pooler_output"
    return CLASS_TOKEN if network.has_class_token else "last_hidden_state"


def _preprocessing(request: Request, source: Source, config: PretrainedConfig) -> tuple[Preprocessing, Sequence[str]]:
    """By the image processor; where there is none that a recipe can say, but the user does: what is not said is assumed.

    Returns:
        It, and what was assumed, for people.
    """
    unsaid = [field for field in _UNSAID if field not in request.said]
    if source.files is None and not request.is_prepared:
        raise ConfigError(
            f"{source.backbone} with weights {source.weights} does not say how images are prepared; give recipe.preprocessing "
            "(resize, crop, interpolation, mean, std)"
        )
    if source.files is not None and unsaid:
        try:
            return read_preprocessing(source.files, source.weights), ()
        except ConfigError:
            if not request.is_prepared:
                raise
    side = getattr(config, "image_size", None) or _UNKNOWN_SIDE
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    size = (height, width)
    assumed = Preprocessing(resize=size, fit="squash", crop=size, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    values = ", ".join(f"{field} {getattr(assumed, field)}" for field in unsaid)
    return assumed, [f"{source.weights}: assumed of its images beside what is given: {values}"] if unsaid else []
