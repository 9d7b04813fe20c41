"""Which class of transformers is a model's image side, and which its text side."""

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from tlray.errors import BackboneError


@dataclass(frozen=True)
class Towers:
    """A kind of model with an image and a text tower.

    Attributes:
        image: class of the image side.
        text: likewise, None where only the image side was kept.
        shared: the image side's output in the common space.
        shared_text: the text side's.
        is_lower: whether its authors write texts small before they are split into tokens.
        is_masked: whether padding is hidden from the text side.
    """

    image: str
    text: str | None
    shared: str
    shared_text: str = ""
    is_lower: bool = False
    is_masked: bool = False


_CLIP = Towers("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection", "image_embeds", "text_embeds", is_masked=True)
_META_CLIP = Towers(
    "MetaClip2VisionModelWithProjection", "MetaClip2TextModelWithProjection", "image_embeds", "text_embeds", is_masked=True
)
_SIGLIP = Towers("SiglipVisionModel", "SiglipTextModel", "pooler_output", "pooler_output", is_lower=True)

TWO_TOWERS = {"clip": _CLIP, "metaclip_2": _META_CLIP, "siglip": _SIGLIP}
"""By `model_type`. CLIP (Radford et al., 2021, arXiv 2103.00020): texts are padded to 77 tokens, the vector is that of the end
token. SigLIP and SigLIP 2 (Zhai et al., 2023, arXiv 2303.15343; Tschannen et al., 2025, arXiv 2502.14786): small letters,
padded to 64 tokens, of which the padding counts. SigLIP 2 of a fixed size has the kind `siglip`."""

_REFUSED = {
    "siglip2": "takes images of any ratio as a list of patches (NaFlex), which a recipe cannot say; use a SigLIP 2 of a fixed "
    "size, as hf:google/siglip2-base-patch16-224",
    "vit_mae": "hides random patches of an image, so no embedding is the same twice; use hf: of a ViT, or timm's MAE weights",
}


def image_class(config: PretrainedConfig, where: str) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The class of transformers for a configuration's image side, and that side's configuration.

    Args:
        config: of the model.
        where: it came from, for messages.

    Raises:
        BackboneError: it is no model of images that can be embedded.
    """
    kind = config.model_type
    if kind in _REFUSED:
        raise BackboneError(f"{where} is a {kind}: it {_REFUSED[kind]}")
    if kind in TWO_TOWERS:
        return _class(TWO_TOWERS[kind].image), _side(config, "vision_config")
    if kind.endswith("_vision_model") and kind.removesuffix("_vision_model") in TWO_TOWERS:
        return _class(TWO_TOWERS[kind.removesuffix("_vision_model")].image), config
    found: Any = MODEL_MAPPING.get(type(config), None)
    found = found[0] if isinstance(found, (list, tuple)) else found
    if found is None or found.main_input_name != "pixel_values" or hasattr(config, "text_config"):
        raise BackboneError(
            f"{where} is a {kind}, from which hf: takes no image embeddings; expected a vision model (DINOv2, DINOv3, ViT, "
            f"ConvNeXt, Swin and others) or one of two towers ({', '.join(TWO_TOWERS)})"
        )
    return found, config


def text_class(config: PretrainedConfig) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The class of the text side of a model of two towers."""
    name = TWO_TOWERS[config.model_type].text
    assert name is not None
    return _class(name), _side(config, "text_config")


def _class(name: str) -> type[PreTrainedModel]:
    found: type[PreTrainedModel] = getattr(transformers, name)
    return found


def _side(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """A side's own configuration; the size of the common space is that of the whole."""
    side: PretrainedConfig = getattr(config, name)
    if hasattr(config, "projection_dim") and hasattr(side, "projection_dim"):
        side.projection_dim = config.projection_dim
    return side
