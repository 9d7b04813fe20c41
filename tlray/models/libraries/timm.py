"""timm's models: how each is built, and how its images are prepared."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import timm
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models._input import get_model_input_config
from torch import nn

from tlray.models.layers.pooling import Layout
from tlray.models.libraries.timm_files import check_architecture, convert, overlay_of
from tlray.models.libraries.zoo.torch_library import TorchLibrary
from tlray.models.libraries.zoo.zoo import Variant, Zoo
from tlray.models.weights.digest import State
from tlray.recipe import Interpolation, Preprocessing


class Timm(Zoo):
    """What is known of timm's models."""

    name = "timm"

    def models(self) -> Sequence[str]:
        """Names of all models, without tags."""
        return list(timm.list_models())

    def entries(self, model: str) -> list[str]:
        """Tags of the model that have weights."""
        return [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")] or (
            [""] if model in timm.list_pretrained(model) else []
        )

    def default_entry(self, model: str) -> str:
        """The tag that timm puts first; empty where the model has none."""
        config = timm.get_pretrained_cfg(model)
        return (config.tag if config else None) or ""

    def entry_of(self, model: str, text: str) -> str | None:
        """The tag of a name, with or without the model's own and `timm:` before it."""
        tag = "" if text in (model, f"timm:{model}") else text.removeprefix("timm:").removeprefix(f"{model}.")
        return tag if tag in self.entries(model) else None

    def qualified(self, model: str, entry: str) -> str:
        """The model's name and the tag: `timm:<model>.<tag>`."""
        return f"timm:{_tagged(model, entry)}"

    def source(self, model: str, entry: str) -> str:
        """The repository on the Hugging Face hub, or the URL."""
        config = timm.get_pretrained_cfg(_tagged(model, entry))
        if config is None:
            return "nowhere"
        return f"hub repository {config.hf_hub_id}" if config.hf_hub_id else str(config.url)

    def build(self, model: str, entry: str, variant: Variant) -> nn.Module:
        """Make the network as the tag's configuration says, or that of a hub's folder (classes, fixed input size)."""
        overlay, arguments = overlay_of(variant.config or {})
        if variant.outputs is not None:
            arguments["num_classes"] = variant.outputs
        if variant.crop is not None:
            arguments["img_size"] = variant.crop
        module: nn.Module = timm.create_model(
            _tagged(model, entry), pretrained=False, pretrained_cfg_overlay=overlay, **arguments
        )
        return module

    def download(self, model: str, entry: str) -> nn.Module:
        """By `timm.create_model`, with the conversions that it applies to foreign files."""
        module: nn.Module = timm.create_model(_tagged(model, entry), pretrained=True)
        return module

    def takes(self, module: nn.Module, crop: tuple[int, int]) -> bool:
        """All sizes, but for models that timm calls fixed: they have position embeddings or windows for one."""
        config = get_model_input_config(module)
        return not config["fixed_input_size"] or tuple(config["input_size"][1:]) == crop

    def convert(self, model: str, state: State, module: nn.Module) -> State:
        """By the function that timm loads the model's own weights through; position embeddings are resized by it."""
        return convert(model, state, module)

    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:  # noqa: ARG002
        """What the data configuration says, as `timm.data.transforms_factory.transforms_imagenet_eval` reads it.

        Scale = floor(size / crop_pct); modes: center (fill the box), squash (exactly the box), border (stay inside the
        box and pad with the mean).
        """
        config = resolve_data_config(pretrained_cfg=module.pretrained_cfg)  # type: ignore[no-untyped-call]
        _, height, width = config["input_size"]
        resize = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
        is_border = config["crop_mode"] == "border"
        interpolation: Interpolation = config["interpolation"]
        return Preprocessing(
            resize=resize,
            fit="contain" if is_border else "squash" if config["crop_mode"] == "squash" else "cover",
            crop=(height, width),
            fill=tuple(round(255 * value) for value in config["mean"]) if is_border else (0, 0, 0),
            interpolation=interpolation,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def layout(self, module: nn.Module) -> Layout:
        """By timm's own attributes, or by the class tokens that the model has."""
        return _layout(module)

    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:
        """What `get_classifier()` gives: one module, several (distilled models), or an Identity where there is none."""
        get_classifier = getattr(module, "get_classifier", None)
        classifier = get_classifier() if callable(get_classifier) else None
        parts = list(classifier) if isinstance(classifier, (tuple, list, nn.ModuleList)) else [classifier]
        return [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]

    def classifier_names(self, module: nn.Module) -> Sequence[str]:
        """Names of the modules that `classifiers` gives."""
        parts = {id(part) for part in self.classifiers(module) or ()}
        return [name for name, layer in module.named_modules() if id(layer) in parts]

    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:  # noqa: ARG002
        """The label names of the tag's configuration, else WordNet's words for the variant of ImageNet of this many classes."""
        named = (getattr(module, "pretrained_cfg", None) or {}).get("label_names")
        if isinstance(named, (list, tuple)):
            return [str(name) for name in named]
        subset = infer_imagenet_subset(module)
        return list(ImageNetInfo(subset).label_descriptions()) if subset else None

    def published_as(self, model: str, path: Path, name: str) -> str | None:  # noqa: ARG002
        """By the name of a tag's file, whatever its suffix; those on the hub all have the same name."""
        stem = PurePosixPath(name).stem
        for entry in self.entries(model):
            config = timm.get_pretrained_cfg(_tagged(model, entry))
            if config is not None and config.url and PurePosixPath(str(config.url)).stem == stem:
                return entry
        return None

    def describes(self, model: str, config: Mapping[str, object]) -> bool:
        """Whether a hub folder's configuration is one of timm's."""
        return check_architecture(model, config)


def library() -> TorchLibrary:
    """Timm, as a library of backbones."""
    return TorchLibrary(Timm())


def _tagged(model: str, entry: str) -> str:
    return f"{model}.{entry}" if entry else model


def _layout(module: nn.Module) -> Layout:
    """Prefix tokens by timm's attribute; models without it (CoaT, VOLO, PiT, CrossViT) have a parameter for class tokens."""
    is_nhwc = str(getattr(module, "output_fmt", "NCHW")) == "NHWC"
    prefix = getattr(module, "num_prefix_tokens", None)
    if prefix is not None:
        return Layout(int(prefix), int(prefix) > 0 and bool(getattr(module, "has_class_token", True)), is_nhwc)
    tokens = [token for name, token in module.named_parameters(recurse=False) if name.startswith("cls_token")]
    counts = {int(token.shape[1]) for token in tokens if token.ndim == 3}
    return Layout(max(counts, default=0), bool(counts), is_nhwc)
