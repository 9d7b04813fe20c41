"""A vision model of transformers as a module whose outputs are tapped by the names that transformers gives them.

Shape legend: B images, C channels, H height, W width, N tokens.
"""

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from tlray.models.layers.pooling import Layout

_OUTPUTS = ("last_hidden_state", "pooler_output", "image_embeds")
"""Fields of what transformers' vision models put out, of which each has some."""

CLASS_TOKEN = "cls_token"  # noqa: S105 - the name of a layer
"""The tap for the class token of the last hidden state, by itself."""

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_PREFIX_TOKENS = (*_CLASS_TOKENS, "distillation_token", "register_tokens")
"""What transformers' models call the parameters that become tokens before those of the patches."""


class VisionNetwork(nn.Module):
    """Images to what a vision model of transformers makes of them.

    Its own layers are those of `model` (`model.encoder.layer.3`). Beside it there is a layer for each output by the name that
    transformers gives it (`last_hidden_state`, `pooler_output`, `image_embeds`, `hidden_states.3`), and `cls_token`.

    Args:
        model: in eval mode.
        crop: (height, width) of its images in pixels.

    Attributes:
        layout: of its layers.
        has_class_token: whether there is the layer `cls_token`.
        finite: outputs that the weights fill.
    """

    def __init__(self, model: PreTrainedModel, crop: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.layout = layout_of(model)
        self._options = _options(model, crop)
        with torch.inference_mode():
            outputs = self._run(torch.zeros(1, 3, *crop), hidden_states=True)
        for name in _OUTPUTS:
            if isinstance(outputs.get(name), Tensor):
                self.add_module(name, nn.Identity())
        self.has_class_token = self.layout.has_class_token and _is_sequence(outputs.get("last_hidden_state"))
        if self.has_class_token:
            self.add_module(CLASS_TOKEN, nn.Identity())
        self.hidden_states = nn.ModuleList(nn.Identity() for _ in outputs.get("hidden_states") or ())
        self.finite = {name for name in _OUTPUTS if isinstance(found := outputs.get(name), Tensor) and found.isfinite().all()}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Run the model and hand each output to its layer.

        Returns:
            The last one that the model has: `image_embeds`, `pooler_output` or `last_hidden_state`.
        """
        is_watched = any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.hidden_states)
        outputs = self._run(images_BCHW, hidden_states=is_watched)
        for layer, hidden in zip(self.hidden_states, outputs.get("hidden_states") or (), strict=False):
            layer(hidden)
        if self.has_class_token:
            self.get_submodule(CLASS_TOKEN)(outputs["last_hidden_state"][:, 0])
        result = images_BCHW
        for name in _OUTPUTS:
            if isinstance(value := outputs.get(name), Tensor):
                result = self.get_submodule(name)(value)
        return result

    def _run(self, images_BCHW: Tensor, *, hidden_states: bool) -> ModelOutput:
        outputs: ModelOutput = self.model(
            pixel_values=images_BCHW, output_hidden_states=hidden_states, return_dict=True, **self._options
        )
        return outputs


def _is_sequence(output: object) -> bool:
    """Whether an output is one of tokens; some models (CvT) take the class token off and give a map."""
    return isinstance(output, Tensor) and output.ndim == 3


def layout_of(model: nn.Module) -> Layout:
    """Tokens before those of the patches: class, distillation and register tokens, by the parameters that the model has."""
    counts = {}
    for name, parameter in model.named_parameters():
        part = name.rpartition(".")[2]
        if part in _PREFIX_TOKENS:
            counts[part] = int(parameter.shape[1]) if parameter.ndim == 3 else 1
    return Layout(sum(counts.values()), any(name in counts for name in _CLASS_TOKENS))


def _options(model: PreTrainedModel, crop: tuple[int, int]) -> dict[str, bool]:
    """Position embeddings are brought to another size of images by the model itself, where it can."""
    side = getattr(model.config, "image_size", None)
    usual = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes and side is not None and usual != crop else {}
