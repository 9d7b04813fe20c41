"""The configuration of a model's image processor, read into a recipe's preprocessing; what a recipe cannot say is refused.

transformers' own class reads the file and fills in its defaults; the pixels are then made by tlray's one path.
"""

from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor

from tlray.errors import ConfigError, first_line
from tlray.models.libraries.huggingface.checkpoint.files import CONFIG, ModelFiles
from tlray.models.libraries.huggingface.checkpoint.source import READ_ERRORS, quiet
from tlray.recipe import UNIT_SCALE, Interpolation, Preprocessing

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""The image processor's own file, and the one of a model with a tokeniser, which has both."""

_PLAIN = frozenset(
    f"{name}ImageProcessor"
    for name in (
        "Beit",
        "Bit",
        "ChineseCLIP",
        "CLIP",
        "DeiT",
        "DINOv3ViT",
        "MobileNetV1",
        "MobileNetV2",
        "MobileViT",
        "Siglip",
        "ViT",
    )
)
"""Those that resize, crop from the centre, scale and normalise, in this order, and nothing else."""

_CONVNEXT = "ConvNextImageProcessor"
_CONVNEXT_SQUASHED = 384
"""Pixels from which its images are squashed and not cropped; as its `resize` has it."""

_FILTERS: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Interpolations by Pillow's numbers for them (`PIL.Image.Resampling`)."""

_KNOWN_STEPS = frozenset(
    {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order"}
)
_NOT_FOR_IMAGES = frozenset({"do_reduce_labels"})

_GIVE = "give recipe.preprocessing (resize, crop, interpolation, mean, std) to prepare them otherwise"


def read_preprocessing(files: ModelFiles, where: str) -> Preprocessing:
    """How a model's images are prepared, by its image processor's configuration.

    Args:
        files: of the model.
        where: they are, for messages.

    Raises:
        ConfigError: there is no such configuration, or it says what a recipe cannot.
    """
    with files.copied((*PROCESSOR_FILES, CONFIG)) as folder, quiet:
        if not any((folder / name).exists() for name in PROCESSOR_FILES):
            raise ConfigError(f"{where} has no {PROCESSOR_FILES[0]}, which says how images are prepared; {_GIVE}")
        try:
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except READ_ERRORS as error:
            raise ConfigError(
                f"{where}: {PROCESSOR_FILES[0]} cannot be read by transformers: {first_line(error)}; {_GIVE}"
            ) from error
    name = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    return preprocessing_of(name, processor.to_dict(), where)


def preprocessing_of(name: str, config: Mapping[str, Any], where: str) -> Preprocessing:
    """A recipe's preprocessing for the class of an image processor and its settings.

    Args:
        name: of the class, as `CLIPImageProcessor`.
        config: its settings, complete.
        where: they came from, for messages.

    Raises:
        ConfigError: it does what a recipe cannot say.
    """
    if name not in _PLAIN and name != _CONVNEXT:
        raise ConfigError(f"{where}: images are prepared by a {name}, whose way a recipe cannot say; {_GIVE}")
    steps = {key for key, value in config.items() if key.startswith("do_") and value}
    if odd := sorted(steps - _KNOWN_STEPS - _NOT_FOR_IMAGES):
        raise ConfigError(f"{where}: its image processor has {', '.join(odd)}, which a recipe cannot say; {_GIVE}")
    geometry = _convnext(config, where) if name == _CONVNEXT else _geometry(config, steps, where)
    number = config.get("resample")
    if not isinstance(number, int) or number not in _FILTERS:
        raise ConfigError(f"{where}: its image processor has resample {number!r}, expected one of Pillow's 0 to 5; {_GIVE}")
    scale = _scale(config) if "do_rescale" in steps else (0.0, 255.0)
    is_normalised = "do_normalize" in steps
    return Preprocessing(
        **geometry,
        interpolation=_FILTERS[number],
        channels="bgr" if "do_flip_channel_order" in steps else "rgb",
        scale=scale,
        mean=_three(config.get("image_mean"), where) if is_normalised else (0.0, 0.0, 0.0),
        std=_three(config.get("image_std"), where) if is_normalised else (1.0, 1.0, 1.0),
    )


def _geometry(config: Mapping[str, Any], steps: set[str], where: str) -> dict[str, Any]:
    """Resize to a box or by the shortest edge, then crop from the centre."""
    size = _sides(config.get("size")) if "do_resize" in steps else {}
    crop = _pair(_sides(config.get("crop_size"))) if "do_center_crop" in steps else None
    if "do_resize" in steps and (box := _pair(size)) is not None:
        if crop is not None and (crop[0] > box[0] or crop[1] > box[1]):
            raise _padded(where, crop, box)
        return {"resize": box, "fit": "squash", "crop": crop or box}
    if "do_resize" in steps and set(size) == {"shortest_edge"} and crop is not None:
        side = size["shortest_edge"]
        if max(crop) > side:
            raise _padded(where, crop, (side, side))
        return {"resize": (side, side), "fit": "cover", "crop": crop, "crop_offset": "floor"}
    if crop is None:
        said = ", ".join(f"{key} {value}" for key, value in size.items()) or "no size"
        raise ConfigError(
            f"{where}: its image processor (size: {said}; no centre crop) makes images of many sizes, but a recipe has one; "
            f"{_GIVE}"
        )
    raise ConfigError(
        f"{where}: its image processor has size {size or None} and crop_size {crop}, expected a height and width or a shortest "
        f"edge; {_GIVE}"
    )


def _convnext(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Cropped from shortest edge / crop_pct where that edge is under 384 pixels, else squashed."""
    side = _sides(config.get("size")).get("shortest_edge")
    if not config.get("do_resize") or side is None:
        raise ConfigError(f"{where}: its image processor has size {config.get('size')}, expected a shortest edge; {_GIVE}")
    if side >= _CONVNEXT_SQUASHED:
        return {"resize": (side, side), "fit": "squash", "crop": (side, side)}
    resized = int(side / config["crop_pct"])
    return {"resize": (resized, resized), "fit": "cover", "crop": (side, side), "crop_offset": "floor"}


def _scale(config: Mapping[str, Any]) -> tuple[float, float]:
    """What 0..255 becomes; a factor of 1/255 is written with as many digits as people please."""
    high = 255 * float(config["rescale_factor"])
    return UNIT_SCALE if abs(high - 1) < 1e-6 else (0.0, high)


def _sides(size: Any) -> dict[str, int]:
    """A size as transformers writes it: a mapping with some keys unset, or a side."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}


def _pair(size: Mapping[str, int]) -> tuple[int, int] | None:
    return (size["height"], size["width"]) if set(size) == {"height", "width"} else None


def _three(values: Any, where: str) -> tuple[float, float, float]:
    values = [values] * 3 if isinstance(values, (int, float)) else list(values or [])
    if len(values) != 3:
        raise ConfigError(
            f"{where}: its image processor has {len(values)} means or deviations, expected one a channel of RGB; {_GIVE}"
        )
    return float(values[0]), float(values[1]), float(values[2])


def _padded(where: str, crop: tuple[int, int], resized: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"{where}: its image processor resizes to {resized[0]}x{resized[1]} and crops {crop[0]}x{crop[1]}, so it would pad; "
        f"{_GIVE}"
    )
