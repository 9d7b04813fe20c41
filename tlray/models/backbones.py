"""Backbones: from what a user asks for to a full recipe and a module with weights, and back from the recipe on a worker.

Shape legend: B images, H height, W width, C channels, R values of a row of pixels.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.models.libraries.library import Library
from tlray.models.libraries.names import full_name, libraries_with, split_name
from tlray.models.taps import Pooling, TapRunner, find_default_tap, find_layer
from tlray.models.weights import READ_ERRORS, FetchFile, WeightsSpec, hash_weights, put_weights, read_weights
from tlray.recipe import UNIT_SCALE, Preprocessing, Recipe, golden_images

_log = logging.getLogger(__name__)

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only training runs


@dataclass(frozen=True)
class Backbone:
    """A pretrained network and all that its embeddings depend on.

    Attributes:
        recipe: complete, with the weights' hash.
        module: in eval mode, fp32, on the CPU, weights loaded.
        shapes: per table column, the shape of one embedding after pooling, before it is flattened.
    """

    recipe: Recipe
    module: nn.Module
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Architecture:
    library: Library
    model: str
    entry: str | None  # as the user gave it

    @classmethod
    def parse(cls, backbone: str) -> "_Architecture":
        library, name = split_name(backbone)
        model, _, tag = name.partition(".")
        if tag and (library.name != "timm" or library.entry_of(model, tag) is None):
            tags = library.entries(model) if library.name == "timm" else []
            raise BackboneError(
                f"there is no backbone {backbone!r}; tags of {library.name}:{model}: {', '.join(tags) or 'none'}"
            )
        return cls(library, model, tag or None)

    @property
    def configuration(self) -> str:
        """The entry that says how the module is built where its weights do not."""
        return self.entry or self.library.default_entry(self.model)

    @property
    def name(self) -> str:
        return f"{self.library.name}:{self.model}"


def resolve_backbone(config: RecipeConfig, fetch: FetchFile) -> Backbone:
    """Complete what the user asks for: weights, preprocessing, taps, hash. Runs on the driver.

    Args:
        config: the user's `recipe`.
        fetch: brings the URI or path of a weights file to a local path.

    Raises:
        BackboneError: unknown backbone, layer or pooling.
        WeightsError: weights missing, not fitting, or of another hash than `config.weights_sha256`.
        ConfigError: preprocessing that the backbone cannot take.
    """
    config = config.model_copy(update={"backbone": _in_full(config.backbone)})
    architecture = _Architecture.parse(config.backbone)
    spec = WeightsSpec.parse(config.weights)
    entry = _entry(architecture, spec)
    module = _load(architecture, entry, spec, fetch)
    sha256 = hash_weights(module)
    if config.weights_sha256 not in (None, sha256):
        raise WeightsError(f"{config.weights} has the hash {sha256}, expected weights_sha256 {config.weights_sha256}")
    from_library = spec.kind == "library"
    preprocessing = architecture.library.preprocessing(architecture.model, entry, module)
    draft = Recipe(
        backbone=architecture.name if from_library else config.backbone,
        weights=architecture.library.qualified(architecture.model, entry) if from_library else config.weights,
        weights_sha256=sha256,
        taps=config.taps or ("default",),
        pool=config.pool,
        normalize=config.normalize,
        precision=config.precision,
        preprocessing=_override(preprocessing, config.preprocessing),
    )
    try:
        return _probe(draft, module, None if config.taps else architecture.library)
    except _ForwardError as error:
        given, usual = draft.preprocessing.crop, preprocessing.crop
        raise ConfigError(
            f"{config.backbone} cannot take images of crop {given[0]}x{given[1]}; expected {usual[0]}x{usual[1]}, "
            f"as its weights say: {error}"
        ) from error


def _in_full(backbone: str) -> str:
    """A backbone's full name; where the user named no library and several have it, says which one was taken."""
    name = full_name(backbone)
    if ":" not in backbone:
        others = [f"{library}:{backbone}" for library in libraries_with(backbone)][1:]
        _log.warning("backbone %s is %s%s", backbone, name, f"; there is {', '.join(others)}, too" if others else "")
    return name


def load_backbone(recipe: Recipe, fetch: FetchFile) -> Backbone:
    """Make the module of a recipe again, on a worker.

    Args:
        recipe: from `resolve_backbone`.
        fetch: as there.

    Raises:
        BackboneError: this machine's libraries have no such backbone or layer.
        WeightsError: the weights are missing, do not fit, or have another hash than the recipe says.
    """
    architecture = _Architecture.parse(recipe.backbone)
    spec = WeightsSpec.parse(recipe.weights)
    module = _load(architecture, _entry(architecture, spec), spec, fetch)
    if (sha256 := hash_weights(module)) != recipe.weights_sha256:
        raise WeightsError(
            f"{recipe.weights} has the hash {sha256}, but the recipe says {recipe.weights_sha256}; "
            "bring back the weights of the recipe, or extract to a new table"
        )
    try:
        return _probe(recipe, module, None)
    except _ForwardError as error:
        raise BackboneError(f"{recipe.backbone} fails on an image of {recipe.preprocessing.crop}: {error}") from error


def with_taps(backbone: Backbone, taps: Sequence[str]) -> Backbone:
    """The same network, of which other layers are kept.

    Raises:
        BackboneError, ConfigError: as `resolve_backbone`.
    """
    return _probe(backbone.recipe.model_copy(update={"taps": tuple(taps)}), backbone.module, None)


def class_names(backbone: Backbone) -> Sequence[str] | None:
    """What the outputs of the network's own classifier stand for, where its weights are a library's."""
    architecture, spec = _Architecture.parse(backbone.recipe.backbone), WeightsSpec.parse(backbone.recipe.weights)
    if spec.kind != "library":
        return None
    return architecture.library.class_names(architecture.model, _entry(architecture, spec), backbone.module)


def _entry(architecture: _Architecture, spec: WeightsSpec) -> str:
    """The library's entry that the module is built for; checked, where the weights are to come from the library."""
    library, model = architecture.library, architecture.model
    if spec.kind != "library":
        return architecture.configuration
    published = library.entries(model)
    entry = architecture.configuration if spec.location == "default" else library.entry_of(model, spec.location)
    if entry is None or entry not in published:
        raise WeightsError(
            f"{architecture.name} has no weights {spec.location!r}; it has: {', '.join(published) or 'none'}. "
            "Name one of them, a file (path or URI), package:<name> or random:<seed>"
        )
    if architecture.entry not in (None, entry):
        raise WeightsError(f"backbone {architecture.name}.{architecture.entry} contradicts weights {spec.location!r}; give one")
    return entry


def _load(architecture: _Architecture, entry: str, spec: WeightsSpec, fetch: FetchFile) -> nn.Module:
    # Every value is drawn from the seed or overwritten; the caller's generator stays where it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(spec.location) if spec.kind == "random" else 0)
        if spec.kind == "library":
            module = _download(architecture, entry)
        else:
            module = architecture.library.build(architecture.model, entry)
    if spec.kind in ("file", "package"):
        state = {key: tensor for key, tensor in read_weights(spec, fetch).items() if not key.startswith(_AUXILIARY)}
        put_weights(module, state, by_order=spec.by_order, where=spec.location)
    return module.float().eval()


def _download(architecture: _Architecture, entry: str) -> nn.Module:
    library, model = architecture.library, architecture.model
    try:
        module = library.download(model, entry)
    except READ_ERRORS as error:
        raise WeightsError(
            f"weights {library.qualified(model, entry)} could not be had from {library.source(model, entry)}: {error}; "
            "check the network, or give a copy of the file as recipe.weights (a path or URI of safetensors or a state dict)"
        ) from error
    for auxiliary in _AUXILIARY:
        if getattr(module, auxiliary[:-1], None) is not None:
            setattr(module, auxiliary[:-1], None)
    return module


def _override(preprocessing: Preprocessing, wishes: PreprocessingConfig) -> Preprocessing:
    given = wishes.model_dump(exclude_none=True)
    for key in ("resize", "crop"):
        if isinstance(side := given.get(key), int):
            given[key] = (side, side)
    result = Preprocessing.model_validate(preprocessing.model_dump() | given)
    sizes = (*result.crop, *(result.resize or ()))
    if min(sizes) < 1 or not min(result.std) > 0:
        raise ConfigError(f"preprocessing {given}: sizes and std must be positive")
    _check_values(result)
    is_smaller = result.resize is not None and (result.resize[0] < result.crop[0] or result.resize[1] < result.crop[1])
    if given and is_smaller and result.fit != "contain":
        raise ConfigError(
            f"a crop of {result.crop} from images resized to {result.resize} would be padded; give a larger resize too"
        )
    return result


def _check_values(preprocessing: Preprocessing) -> None:
    """Refuse a mean or a standard deviation that no values in the recipe's scale can have: it is one of another scale.

    The standard deviation of values in a range is at most half of its width, and that of pictures no 255th of it; 1 means
    that nothing is divided.

    Raises:
        ConfigError: says what is meant where the values are those of another scale.
    """
    (low, high), mean, std = preprocessing.scale, preprocessing.mean, preprocessing.std
    width = high - low
    if not 0 < width < math.inf:
        raise ConfigError(f"preprocessing.scale is {_listed(preprocessing.scale)}; expected two numbers that rise, as [0, 255]")
    if all(low <= value <= high for value in mean) and all(width / 255 <= value <= width or value == 1 for value in std):
        return
    if preprocessing.scale == UNIT_SCALE and max(*mean, *std) <= 255:
        ours = [_listed(round(value / 255, 6) for value in values) for values in (mean, std)]
        advice = f"values of 0..255 are divided by 255: give mean {ours[0]} and std {ours[1]}, or scale [0, 255] with yours"
    else:
        advice = "give mean and std of values in that scale, or another scale"
    raise ConfigError(
        f"preprocessing.mean {_listed(mean)} and std {_listed(std)} are not those of values in "
        f"{low:g}..{high:g} (preprocessing.scale); {advice}"
    )


def _listed(values: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


class _ForwardError(Exception):
    """The module failed on the probe image."""


def _probe(recipe: Recipe, module: nn.Module, library: Library | None) -> Backbone:
    """Complete a recipe's taps and the shapes by running one golden image; `library` is given to find the default tap."""
    preprocessing = recipe.preprocessing
    images_BHWC = torch.from_numpy(golden_images(*preprocessing.crop)[:1])
    images_BCHW = to_network_input(images_BHWC, preprocessing)
    for tap in recipe.taps if library is None else ():
        find_layer(module, tap)
    try:
        with torch.inference_mode():
            taps = recipe.taps if library is None else (find_default_tap(module, library.classifiers(module), images_BCHW),)
            features = TapRunner(module, taps, Pooling.of(module, recipe.pool, preprocessing.crop))(images_BCHW)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise _ForwardError(str(error)) from error
    recipe = recipe.model_copy(update={"taps": taps})
    if len(set(recipe.columns.values())) != len(taps) or len(set(taps)) != len(taps):
        raise ConfigError(f"taps {', '.join(taps)} would share a column of the table ({', '.join(recipe.columns.values())})")
    return Backbone(recipe, module, {recipe.columns[tap]: tuple(features[tap].shape[1:]) for tap in taps})


def to_network_input(images_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bring pixels to what the network takes, on their own device, in fp32: (x * scale - mean) / std.

    Args:
        images_BHWC: uint8, RGB.
        preprocessing: for channels, scale, mean and std.

    Returns:
        images_BCHW, float32, channels in the recipe's order; from contiguous images in channels_last layout.
    """
    if preprocessing.channels == "bgr":
        images_BHWC = images_BHWC.flip(3)
    # Whole rows at a time: torch has no vector instructions for three values that repeat.
    width = images_BHWC.shape[2]
    mean_R = torch.tensor(preprocessing.mean, device=images_BHWC.device).repeat(width)
    std_R = torch.tensor(preprocessing.std, device=images_BHWC.device).repeat(width)
    rows_BHR = _scaled(images_BHWC.flatten(2), preprocessing.scale)
    return rows_BHR.sub_(mean_R).div_(std_R).view(images_BHWC.shape).permute(0, 3, 1, 2)


def _scaled(rows_BHR: Tensor, scale: tuple[float, float]) -> Tensor:
    """Levels in 0..255 as float32 in a scale; a tensor of its own."""
    low, high = scale
    if scale == UNIT_SCALE:
        return rows_BHR / 255
    return (rows_BHR * ((high - low) / 255)).add_(low)
