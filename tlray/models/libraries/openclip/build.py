"""The towers of open_clip's models with weights: one at a time, nothing left out without a word."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import LOCAL_DIR_PREFIX
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from tlray.errors import BackboneError, ConfigError, WeightsError, first_line
from tlray.models.libraries.openclip.source import CONFIG, Source, quiet, towers_config
from tlray.models.weights.digest import hash_tensors
from tlray.models.weights.files import WeightsFile
from tlray.models.weights.fit import shown

_BUILD_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, KeyError, ImportError, OSError)

VISUAL = "visual."
"""Before the names of the image tower's tensors, in open_clip's files and in `tlray.models.libraries.openclip.load`."""

_SCALES = ("logit_scale", "logit_bias")
_WRAPPERS = ("", "state_dict", "model")
"""Where checkpoints keep their tensors: at the top, or under open_clip's or other trainers' names."""


def read_state(source: Source) -> dict[str, Tensor]:
    """All tensors of a model by open_clip's names; its own conversions are applied.

    Raises:
        WeightsError: there are none, or they are at a place that nobody expects.
    """
    assert source.read is not None
    file = source.read()
    place = next((place for place in _WRAPPERS if place in file.tables), None)
    if place is None or len([name for name in _WRAPPERS if name in file.tables]) > 1:
        raise WeightsError(
            f"{file.where} keeps tensors at {shown(place or 'its top' for place in file.tables)}; expected a state dict of "
            "open_clip"
        )
    state = dict(file.tables[place])
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        return dict(convert_state_dict(SimpleNamespace(), state))
    except _BUILD_ERRORS as error:
        raise _misfit(file, f"open_clip cannot convert it: {first_line(error)}") from error


@dataclass(frozen=True)
class Visual:
    """An image tower with its weights.

    Attributes:
        module: in eval mode.
        weights_sha256: of the weights as they were before position embeddings were resized.
        has_text: whether the weights have a text side too.
        fixed: why it cannot be trained; empty where it can.
        notes: what was changed, for people.
    """

    module: nn.Module
    weights_sha256: str
    has_text: bool = True
    fixed: str = ""
    notes: tuple[str, ...] = ()


def build_visual(source: Source, crop: tuple[int, int] | None) -> Visual:
    """The image tower of a model that was found.

    Args:
        source: the model.
        crop: (height, width) of its images in pixels, where that is not the model's own; position embeddings are resized as
            open_clip and timm do it.

    Raises:
        BackboneError: open_clip cannot build it.
        ConfigError: it cannot take images of that size.
        WeightsError: the weights do not fit.
    """
    visual = _visual(_build(source, "vision_cfg"))
    usual = tuple(visual.image_size) if isinstance(visual.image_size, (tuple, list)) else (visual.image_size,) * 2
    state, has_text, notes = {f"{VISUAL}{name}": tensor for name, tensor in visual.state_dict().items()}, True, []
    if source.read is not None:
        whole = read_state(source)
        state = {name: tensor for name, tensor in whole.items() if name.startswith(VISUAL)}
        has_text = bool(whole.keys() - state.keys() - set(_SCALES))
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()}
        if other := sorted(kinds - {"float32"}):
            notes.append(f"{source.weights}: stored as {', '.join(other)}, computed with as float32")
    before = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if crop is not None and crop != usual and not isinstance(visual, TimmModel):
        visual = _of_size(source, visual, crop)
    with quiet:
        resize_pos_embed(state, SimpleNamespace(visual=visual))
    _fill(source, visual, {name.removeprefix(VISUAL): tensor for name, tensor in state.items()})
    sha256 = hash_tensors((f"{VISUAL}{name}", before[f"{VISUAL}{name}"]) for name in visual.state_dict())
    fixed = ""
    if crop is not None and crop != usual and isinstance(visual, TimmModel):
        _set_size(source, visual, crop)
        fixed = "its image tower was brought to another size of images after its weights were loaded"
    return Visual(visual, sha256, has_text, fixed, tuple(notes))


def build_text(source: Source) -> nn.Module:
    """A whole model whose text side has its weights, in eval mode; its image side is of no use."""
    model = _build(source, "text_cfg")
    if source.read is not None:
        state = {name: tensor for name, tensor in read_state(source).items() if not name.startswith(VISUAL)}
        if not hasattr(model, "positional_embedding"):
            state = dict(convert_to_custom_text_state_dict(state))
        ours = model.state_dict()
        for name in _SCALES:  # of one number, with or without a dimension
            if name in state and name in ours:
                state[name] = state[name].reshape(ours[name].shape)
        state |= {name: tensor for name, tensor in ours.items() if name.startswith(VISUAL)}
        state = {name: tensor for name, tensor in state.items() if name in ours or not name.endswith("position_ids")}
        _fill(source, model, state)
    return model


def _of_size(source: Source, visual: nn.Module, crop: tuple[int, int]) -> nn.Module:
    """Another tower like one, for images of another size."""
    try:
        if not hasattr(visual, "grid_size"):
            raise ValueError("its pooling is for one size")
        model = dict(source.model, vision_cfg=dict(source.model["vision_cfg"], image_size=list(crop)))
        larger: nn.Module = _visual(_build(source, "vision_cfg", model))
    except (*_BUILD_ERRORS, BackboneError) as error:
        raise _wrong_size(source, crop, error) from error
    return larger


def _set_size(source: Source, visual: Any, crop: tuple[int, int]) -> None:
    try:
        visual.set_input_size(crop)
    except _BUILD_ERRORS as error:
        raise _wrong_size(source, crop, error) from error


def _wrong_size(source: Source, crop: tuple[int, int], error: Exception) -> ConfigError:
    return ConfigError(
        f"{source.backbone} cannot take images of crop {crop[0]}x{crop[1]}: {first_line(error)}; leave out "
        "recipe.preprocessing.crop"
    )


def _build(source: Source, kept: str, model: Mapping[str, Any] | None = None) -> nn.Module:
    """A model of open_clip of which one side counts, drawn from the seed; the caller's random numbers stay as they were."""
    config = towers_config(source, kept, model)
    with tempfile.TemporaryDirectory(prefix="tlray-openclip-") as folder, torch.random.fork_rng(devices=[]):
        Path(folder, CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        torch.default_generator.manual_seed(source.seed)
        try:
            with quiet:
                built: nn.Module = open_clip.create_model(
                    f"{LOCAL_DIR_PREFIX}{folder}", load_weights=False, pretrained_text=False, device="cpu"
                )
        except _BUILD_ERRORS as error:
            raise BackboneError(f"open_clip cannot build {source.backbone}: {first_line(error)}") from error
    return built.float().eval()


def _visual(model: Any) -> Any:
    return model.visual


def _fill(source: Source, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    ours = module.state_dict()
    missing = [name for name in ours if name not in state]
    wrong = [f"{name} {tuple(state[name].shape)}" for name in ours if name in state and state[name].shape != ours[name].shape]
    strange = [name for name in state if name not in ours]
    problems = [
        f"{len(names)} {what}: {shown(names)}"
        for what, names in (("missing", missing), ("of another shape", wrong), ("unexpected", strange))
        if names
    ]
    if problems:
        raise WeightsError(f"{source.weights} does not fit {source.backbone}: {'; '.join(problems)}. Use weights of this model")
    module.load_state_dict(dict(state))


def _misfit(file: WeightsFile, why: str) -> WeightsError:
    return WeightsError(f"{file.where} holds no weights of open_clip: {why}")
