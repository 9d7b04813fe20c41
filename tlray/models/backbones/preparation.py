"""How images are prepared: what the user says of it, over what the weights say."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tlray.config import PreprocessingConfig
from tlray.config.sections.presets import PRESETS
from tlray.errors import ConfigError
from tlray.recipe import UNIT_SCALE, Preprocessing


def given_by(wishes: PreprocessingConfig) -> dict[str, Any]:
    """What the user says of preprocessing, with sides as pairs; what a preset says gives way to what is said beside it."""
    given = wishes.model_dump(exclude_none=True, exclude={"preset"})
    if wishes.preset is not None:
        given = {**PRESETS[wishes.preset], **given}
    for key in ("resize", "crop"):
        if isinstance(side := given.get(key), int):
            given[key] = (side, side)
    return given


def override(preprocessing: Preprocessing, given: Mapping[str, Any]) -> Preprocessing:
    """A preprocessing with some of its fields said otherwise.

    Raises:
        ConfigError: sizes that would pad images, or values that no images have in that scale.
    """
    result = Preprocessing.model_validate(preprocessing.model_dump() | dict(given))
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
