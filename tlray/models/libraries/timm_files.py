"""Files of weights as timm's own loader reads them: its conversions, and the configurations of hub folders."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from tlray.errors import WeightsError
from tlray.models.weights.digest import State

Filter = Callable[..., dict[str, Tensor]]

_FILTER_NAMES = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What the modules of timm call the function that they hand to `build_model_with_cfg` as `pretrained_filter_fn`."""

_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
"""Fields of a configuration that say where weights come from, which the user does."""


def filter_of(model: str, kind: type) -> Filter | None:
    """The function through which timm loads a model's own weights; None where it has none.

    timm hands it to its builder and keeps it nowhere, so it is found by its name, with the arguments that some families give
    it; a test holds each against what timm hands over.

    Args:
        model: name without a tag.
        kind: its class.
    """
    module = sys.modules[timm.model_entrypoint(model).__module__]
    family = module.__name__.rpartition(".")[2]
    if family == "crossvit":
        return _crossvit_names
    for part in ("encoder", "classifier"):  # of the towers that have one for each
        if kind.__name__.lower().endswith(part) and hasattr(module, f"checkpoint_filter_fn_{part}"):
            return _typed(getattr(module, f"checkpoint_filter_fn_{part}"))
    found = next((getattr(module, name) for name in _FILTER_NAMES if hasattr(module, name)), None)
    if found is None:
        return None
    if family == "deit":
        return partial(found, adapt_layer_scale=True)
    if family == "hieradet_sam2":
        return partial(found, prefix="")
    if family == "vision_transformer" and ("flexi" in model or "radio" in model):
        return partial(found, interpolation="bilinear", antialias=False)
    return _typed(found)


def convert(model: str, state: State, module: nn.Module) -> State:
    """Tensors of a file by a module's names, with position embeddings of its size."""
    found = filter_of(model, type(module))
    if found is None:
        return state
    try:
        return found(dict(state), module)
    except TypeError:  # those of one argument, as timm's own loader takes them
        return found(dict(state))


def check_architecture(model: str, config: Mapping[str, object]) -> bool:
    """Whether a hub folder's `config.json` is one of timm's.

    Raises:
        WeightsError: it is that of another model.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        return False
    if architecture != model:
        raise WeightsError(
            f"the config.json beside the weights says that they are those of timm:{architecture}, but the backbone is "
            f"timm:{model}; give recipe.backbone timm:{architecture}"
        )
    return True


def overlay_of(config: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a hub folder's configuration changes of a model's: fields of its `PretrainedCfg`, and arguments of its builder.

    Args:
        config: `config.json`; in old ones the fields are at its top.
    """
    nested = config.get("pretrained_cfg")
    given = nested if isinstance(nested, dict) else config
    known = {field.name for field in dataclasses.fields(PretrainedCfg)} - set(_SOURCES)
    overlay = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in {**given, **config}.items()
        if key in known and value is not None
    }
    arguments = config.get("model_args")
    return overlay, dict(arguments) if isinstance(arguments, dict) else {}


def _typed(function: Any) -> Filter:
    found: Filter = function
    return found


def _crossvit_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as a function within timm's builder of CrossViT has it."""
    return {name.replace(".", "_") if "pos_embed" in name or "cls_token" in name else name: state[name] for name in state}
