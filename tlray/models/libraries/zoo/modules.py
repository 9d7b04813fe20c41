"""Building a zoo's modules, and what is said of it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from tlray.errors import ConfigError, first_line
from tlray.models.libraries.zoo.undrawn import Undrawn
from tlray.models.libraries.zoo.zoo import Variant, Zoo
from tlray.models.weights.choose import Convert
from tlray.models.weights.digest import State
from tlray.models.weights.pickles import READ_ERRORS
from tlray.recipe import Preprocessing

_BUILD_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError)
"""What constructors raise for image sizes that their networks cannot have."""


def build(
    zoo: Zoo, model: str, entry: str, variant: Variant, *, for_crop_alone: bool = False, drawn: bool = False
) -> nn.Module:
    """A module in eval mode and fp32; built for another image size only where it needs that.

    Args:
        zoo: of the model.
        model: its name.
        entry: whose configuration it has.
        variant: what of it is other.
        for_crop_alone: build it for the variant's crop, even if it takes all sizes.
        drawn: with random weights; by default they are yet to be put in, see `Undrawn`.

    Raises:
        ConfigError: it cannot have that size.
    """
    weights = nullcontext() if drawn else Undrawn()
    with weights:
        usual = zoo.build(model, entry, replace(variant, crop=None)).float().eval()
    if variant.crop is None or (zoo.takes(usual, variant.crop) and not for_crop_alone):
        return usual
    try:
        with weights:
            return zoo.build(model, entry, variant).float().eval()
    except _BUILD_ERRORS as error:
        height, width = variant.crop
        raise ConfigError(
            f"{zoo.name}:{model} cannot take images of crop {height}x{width}; expected "
            f"{size_of(zoo.preprocessing(model, entry, usual))}, as its weights say, or a size that its patches and windows "
            f"divide: {first_line(error)}"
        ) from error


def converted(zoo: Zoo, model: str, module: nn.Module) -> Convert:
    """The zoo's conversion of tensors to those of a module; tensors that it was not made for stay as they are."""

    def convert(state: State) -> State:
        try:
            found = zoo.convert(model, state, module)
        except READ_ERRORS:
            return state
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}

    return convert


def size_of(preprocessing: Preprocessing) -> str:
    """The crop of a preprocessing as messages give it: `224x224`."""
    return f"{preprocessing.crop[0]}x{preprocessing.crop[1]}"


def described(preprocessing: Preprocessing) -> str:
    """What of a preprocessing differs between weights, for messages."""
    resize = "" if preprocessing.resize is None else f"resize {preprocessing.resize[0]}x{preprocessing.resize[1]}, "
    values = [f"[{', '.join(f'{value:g}' for value in three)}]" for three in (preprocessing.mean, preprocessing.std)]
    return f"{resize}crop {size_of(preprocessing)}, {preprocessing.interpolation}, mean {values[0]}, std {values[1]}"


def for_people(where: str, notes: Sequence[str]) -> list[str]:
    """One sentence of several notes on one thing."""
    return [f"{where}: {'; '.join(notes)}"] if notes else []
