"""Models of transformers with weights: transformers' own conversions of names, and nothing left out without a word."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tlray.errors import BackboneError, WeightsError, first_line
from tlray.models.libraries.huggingface.checkpoint.source import READ_ERRORS, Source, quiet
from tlray.models.weights.digest import State
from tlray.models.weights.fit import shown

_BUILD_ERRORS = (*READ_ERRORS, RuntimeError, AssertionError, NotImplementedError)

OUR_PREFIX = "model."
"""What stands before a tensor's name in `tlray.models.libraries.huggingface.network.VisionNetwork`."""

_MOST_UNFILLED = 0.5
"""The largest share of a model's tensors that may be missing: where more are missing, the weights are another model's."""

_OTHER_SIDE = ("text_model.", "text_projection.", "vision_model.", "visual_projection.", "logit_scale", "logit_bias")
"""Beginnings of the names of what one tower has no place for, as it is the other's."""


@dataclass(frozen=True)
class Built:
    """A model that was built from its configuration, with its weights.

    Attributes:
        model: in eval mode, fp32, on the CPU.
        unfilled: tensors of it without values; they are not numbers.
        misfit: the message for what needs these.
        notes: what was left out or changed, for people.
        has_text: whether the weights have a text side too.
        logit_scale: what they have of that name, beside both sides; None where they have none.
    """

    model: PreTrainedModel
    unfilled: Sequence[str] = ()
    misfit: str = ""
    notes: Sequence[str] = ()
    has_text: bool = True
    logit_scale: Tensor | None = None


def build(source: Source, kind: type[PreTrainedModel], config: PretrainedConfig) -> Built:
    """A model by its class and configuration, with the source's weights or random ones.

    The caller's random numbers stay as they were.

    Raises:
        BackboneError: transformers cannot build it.
        WeightsError: the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]), quiet:
        torch.default_generator.manual_seed(source.seed)
        if source.read is not None:
            return _filled(source, kind, config)
        try:
            model = kind(config)
        except _BUILD_ERRORS as error:
            raise BackboneError(
                f"{source.backbone}: transformers cannot build a {kind.__name__} of its configuration: {first_line(error)}"
            ) from error
        return Built(model.float().eval())


def _filled(source: Source, kind: type[PreTrainedModel], config: PretrainedConfig) -> Built:
    assert source.read is not None
    file = source.read()
    if set(file.tables) != {""}:
        raise WeightsError(
            f"{file.where} keeps tensors at {shown(place or 'its top' for place in file.tables)}; expected a state dict, as "
            "transformers saves it (save_pretrained)"
        )
    state = file.tables[""]
    if all(name.startswith(OUR_PREFIX) for name in state):  # of a network that tlray trained
        state = {name.removeprefix(OUR_PREFIX): tensor for name, tensor in state.items()}
    try:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, dtype=torch.float32
        )
    except _BUILD_ERRORS as error:
        raise WeightsError(f"{file.where} does not fit a {kind.__name__} of its configuration: {first_line(error)}") from error
    ours = model.state_dict()
    missing = sorted(name for name in report["missing_keys"] if name in ours)
    extra = sorted(report["unexpected_keys"])
    parts = {name.partition(".")[0] for name in ours}
    strange = [name for name in extra if name.partition(".")[0] in parts and not _is_index(name, state)]
    message = (
        f"{file.where} does not fit: it has {len(state)} tensors, the backbone {len(ours)}; "
        + "; ".join(
            f"{len(names)} {what}: {shown(names)}" for what, names in (("missing", missing), ("unexpected", strange)) if names
        )
        + ". Use weights of this backbone, or layers that do not need what is missing"
    )
    if strange or len(missing) > _MOST_UNFILLED * len(ours):
        raise WeightsError(message)
    with torch.no_grad():
        for name in missing:
            if ours[name].is_floating_point():
                ours[name].fill_(torch.nan)
    has_text = any(name.startswith("text_model.") for name in state)
    notes = _notes(file.where, state, missing, extra)
    return Built(model.float().eval(), missing, message, notes, has_text, state.get("logit_scale"))


def _is_index(name: str, state: State) -> bool:
    """Whether a tensor is one of indices (`position_ids`), which old files keep, and which models now make themselves.

    Names may have lost what stands before them in the file.
    """
    return any(not state[key].is_floating_point() for key in state if f".{key}".endswith(f".{name}"))


def _notes(where: str, state: State, missing: Sequence[str], extra: Sequence[str]) -> list[str]:
    notes = []
    others = [name for name in extra if name.startswith(_OTHER_SIDE)]
    if rest := [name for name in extra if name not in others]:
        notes.append(f"left out {len(rest)} tensors that the backbone has no place for ({shown(rest)})")
    if missing:
        notes.append(f"left without values what it does not fill, and embeddings do not need ({shown(missing)})")
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()}
    if other := sorted(kinds - {"float32"}):
        notes.append(f"stored as {', '.join(other)}, computed with as float32")
    return [f"{where}: {'; '.join(notes)}"] if notes else []
