"""timm's models: how each is built, and how its images are prepared."""

import math
from collections.abc import Sequence

import timm
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from tlray.recipe import Interpolation, Preprocessing


class Timm:
    """timm's models."""

    name = "timm"

    def models(self) -> list[str]:
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
        """`a1_in1k`, `resnet50.a1_in1k` or `timm:resnet50.a1_in1k`."""
        tag = "" if text in (model, f"timm:{model}") else text.removeprefix("timm:").removeprefix(f"{model}.")
        return tag if tag in self.entries(model) else None

    def qualified(self, model: str, entry: str) -> str:
        """`timm:<model>.<tag>`."""
        return f"timm:{_tagged(model, entry)}"

    def source(self, model: str, entry: str) -> str:
        """The repository on the Hugging Face hub, or the URL."""
        config = timm.get_pretrained_cfg(_tagged(model, entry))
        if config is None:
            return "nowhere"
        return f"hub repository {config.hf_hub_id}" if config.hf_hub_id else str(config.url)

    def build(self, model: str, entry: str) -> nn.Module:
        """As the tag's configuration says (classes, fixed input size)."""
        module: nn.Module = timm.create_model(_tagged(model, entry), pretrained=False)
        return module

    def download(self, model: str, entry: str) -> nn.Module:
        """By `timm.create_model`, with the conversions that it applies to foreign files."""
        module: nn.Module = timm.create_model(_tagged(model, entry), pretrained=True)
        return module

    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:  # noqa: ARG002
        """Of the model's data configuration, as `timm.data.transforms_factory.transforms_imagenet_eval` reads it.

        Scale = floor(size / crop_pct); modes: center (fill the box), squash (exactly the box), border (stay inside the
        box and pad with the mean).
        """
        config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
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

    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:
        """What `get_classifier()` gives: one module, several (distilled models), or an Identity where there is none."""
        get_classifier = getattr(module, "get_classifier", None)
        classifier = get_classifier() if callable(get_classifier) else None
        parts = list(classifier) if isinstance(classifier, (tuple, list, nn.ModuleList)) else [classifier]
        return [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]

    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:  # noqa: ARG002
        """The label names of the tag's configuration, else WordNet's words for the variant of ImageNet of this many classes."""
        named = (getattr(module, "pretrained_cfg", None) or {}).get("label_names")
        if isinstance(named, (list, tuple)):
            return [str(name) for name in named]
        subset = infer_imagenet_subset(module)
        return list(ImageNetInfo(subset).label_descriptions()) if subset else None


def _tagged(model: str, entry: str) -> str:
    return f"{model}.{entry}" if entry else model
