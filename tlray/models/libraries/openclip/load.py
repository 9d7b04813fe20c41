"""Loading a model of open_clip: its image tower now, its text tower when it is asked for.

Shape legend: B images, C channels, D embedding length, H height, W width.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from open_clip.model import CLIPVisionCfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from tlray.models.layers.pooling import NO_TOKENS, Layout
from tlray.models.libraries.library import Pretrained, Request, TextSide
from tlray.models.libraries.openclip.build import build_visual
from tlray.models.libraries.openclip.source import CONFIG, Source, find_source
from tlray.models.libraries.openclip.text import open_text_tower
from tlray.models.libraries.zoo.modules import described
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Interpolation, Preprocessing

SHARED = "image_embeds"
"""The tap whose vectors texts are compared with."""


class ImageTower(nn.Module):
    """The image tower of a model of open_clip; what it puts out goes through the layer `image_embeds`.

    Args:
        visual: open_clip's.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.image_embeds = nn.Identity()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The vectors that texts are compared with, features_BD; CoCa's tokens beside them are left out."""
        found = self.visual(images_BCHW)
        features_BD: Tensor = self.image_embeds(found[0] if isinstance(found, tuple) else found)
        return features_BD


def load(request: Request, fetch: FetchFile) -> Pretrained:
    """A network with its weights; see `tlray.models.libraries.library.Library.load`."""
    source = find_source(request, fetch)
    built = build_visual(source, request.crop)
    preprocessing = _preprocessing(source)
    assumed = [] if request.is_prepared else _assumed(source, preprocessing)
    document = {"model_cfg": source.model, "preprocess_cfg": source.preprocess}
    return Pretrained(
        backbone=source.backbone,
        weights=source.weights,
        weights_sha256=built.weights_sha256,
        module=ImageTower(built.module).eval(),
        preprocessing=preprocessing,
        layout=_layout(built.module),
        default_tap=SHARED,
        classifiers=(),
        text_tower=partial(open_text_tower, source) if built.has_text else None,
        text_tap=SHARED,
        files={CONFIG: json.dumps(document).encode()},
        fixed=built.fixed,
        packages=("open-clip-torch",),
        notes=(*source.notes, *assumed, *built.notes),
    )


def text_side(request: Request, fetch: FetchFile) -> TextSide:
    """A network's text side; see `tlray.models.libraries.library.LibraryOfTexts.text_side`."""
    return TextSide(SHARED, partial(open_text_tower, find_source(request, fetch)))


def _layout(visual: nn.Module) -> Layout:
    """One class token in open_clip's own transformers; in timm's trunks what timm says; none in its ResNets."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        return Layout(
            prefix, prefix > 0 and bool(getattr(trunk, "has_class_token", True)), getattr(trunk, "output_fmt", "") == "NHWC"
        )
    return Layout(1, True) if hasattr(visual, "class_embedding") else NO_TOKENS


def _preprocessing(source: Source) -> Preprocessing:
    """The preprocessing as `open_clip.transform.image_transform_v2` reads it for evaluation."""
    size = source.model["vision_cfg"].get("image_size", CLIPVisionCfg.image_size)
    config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), dict(source.preprocess) | {"size": size}))
    height, width = config.size if isinstance(config.size, (tuple, list)) else (config.size, config.size)
    is_odd = config.resize_mode == "shortest" and height != width  # resized by the default filter, whatever is said
    interpolation: Interpolation = "bilinear" if config.interpolation == "bilinear" and not is_odd else "bicubic"
    fits: Mapping[str, Any] = {"shortest": "cover", "longest": "contain", "squash": "squash"}
    return Preprocessing(
        resize=(height, width),
        fit=fits[config.resize_mode],
        crop=(height, width),
        fill=(config.fill_color,) * 3 if config.resize_mode == "longest" else (0, 0, 0),
        interpolation=interpolation,
        mean=_three(config.mean),
        std=_three(config.std),
    )


def _assumed(source: Source, preprocessing: Preprocessing) -> Sequence[str]:
    """What weights of a file by itself do not say, and open_clip then takes to be so."""
    if source.read is None or source.preprocess or source.files is not None:
        return []
    model = source.backbone
    return [
        f"{source.weights} does not say how its images are to be prepared, nor whether it was trained with QuickGELU; assumed: "
        f"as open_clip has it for {model} ({described(preprocessing)}). Where that is wrong, name the weights that they are in "
        f"the backbone, as {model}/<tag>, or give recipe.preprocessing"
    ]


def _three(values: Any) -> tuple[float, float, float]:
    values = list(values) if isinstance(values, (tuple, list)) else [values] * 3
    return float(values[0]), float(values[1]), float(values[2])
