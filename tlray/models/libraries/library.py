"""The libraries that backbones come from: which models they have, how each is built, how its images are prepared."""

import math
from collections.abc import Sequence
from typing import Protocol

import timm
import torchvision
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from tlray.recipe import Interpolation, Preprocessing


class Library(Protocol):
    """What a library of pretrained models offers. An *entry* is one published set of weights: an enum name or a tag."""

    name: str

    def models(self) -> list[str]:
        """Names of all classification models."""
        ...

    def entries(self, model: str) -> list[str]:
        """The weights it publishes for a model; the empty list where there are none."""
        ...

    def default_entry(self, model: str) -> str:
        """The entry whose configuration (classes, input size, preprocessing) a model has unless told otherwise."""
        ...

    def entry_of(self, model: str, text: str) -> str | None:
        """The entry that a user named, in the library's short or its qualified form."""
        ...

    def qualified(self, model: str, entry: str) -> str:
        """The name of an entry in a recipe, `<library>:...`."""
        ...

    def source(self, model: str, entry: str) -> str:
        """Where an entry is downloaded from, for messages."""
        ...

    def build(self, model: str, entry: str) -> nn.Module:
        """The model as the entry needs it, with the weights that its own initialisation draws."""
        ...

    def download(self, model: str, entry: str) -> nn.Module:
        """The model with the entry's weights, through the library's own download and cache."""
        ...

    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:
        """The preprocessing that the entry was evaluated with."""
        ...

    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:
        """The modules of its classifier, empty where it has none, None where the library does not say."""
        ...

    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:
        """What the outputs of an entry stand for, None where the library does not say."""
        ...


class Torchvision:
    """torchvision's classification models."""

    name = "torchvision"

    def models(self) -> list[str]:
        """Names of all classification models."""
        return list(torchvision.models.list_models(module=torchvision.models))

    def entries(self, model: str) -> list[str]:
        """Names of the model's weights enum."""
        return [entry.name for entry in torchvision.models.get_model_weights(model)]

    def default_entry(self, model: str) -> str:
        """What DEFAULT stands for in this version of torchvision."""
        return str(torchvision.models.get_model_weights(model).DEFAULT.name)

    def entry_of(self, model: str, text: str) -> str | None:
        """`IMAGENET1K_V2`, `ResNet50_Weights.IMAGENET1K_V2` or `torchvision:ResNet50_Weights.IMAGENET1K_V2`."""
        enum = torchvision.models.get_model_weights(model)
        name = text.removeprefix("torchvision:").removeprefix(f"{enum.__name__}.")
        return str(enum[name].name) if name in enum.__members__ else None

    def qualified(self, model: str, entry: str) -> str:
        """`torchvision:<enum>.<entry>`."""
        return f"torchvision:{torchvision.models.get_model_weights(model).__name__}.{entry}"

    def source(self, model: str, entry: str) -> str:
        """The entry's URL."""
        return str(torchvision.models.get_model_weights(model)[entry].url)

    def build(self, model: str, entry: str) -> nn.Module:
        """As the model's builder does it when it is given weights, which is part of what the weights mean.

        The numbers of classes and pixels come from the weights' metadata; Inception and GoogLeNet rescale their input
        themselves (`transform_input`), and are built without their auxiliary classifiers, which only training runs.
        """
        meta = torchvision.models.get_model_weights(model)[entry].meta
        arguments: dict[str, object] = {}
        if meta["categories"]:
            arguments["num_classes"] = len(meta["categories"])
        if model.startswith("vit_"):
            arguments["image_size"] = meta["min_size"][0]
        if model in ("googlenet", "inception_v3"):
            arguments |= {"transform_input": True, "aux_logits": False, "init_weights": False}
        module: nn.Module = torchvision.models.get_model(model, weights=None, **arguments)
        return module

    def download(self, model: str, entry: str) -> nn.Module:
        """`torchvision.models.get_model`, which checks the hash in the file's name."""
        weights = torchvision.models.get_model_weights(model)[entry]
        module: nn.Module = torchvision.models.get_model(model, weights=weights, progress=False)
        return module

    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:  # noqa: ARG002
        """Of `weights.transforms()`: the shortest side to `resize_size`, then a square from the centre."""
        transforms = torchvision.models.get_model_weights(model)[entry].transforms()
        resize, crop = transforms.resize_size[0], transforms.crop_size[0]
        return Preprocessing(
            resize=(resize, resize),
            crop=(crop, crop),
            interpolation=transforms.interpolation.value,
            antialias=bool(transforms.antialias),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )

    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:  # noqa: ARG002
        """Nothing: it does not say."""
        return None

    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:  # noqa: ARG002
        """The categories of the weights' metadata."""
        return list(torchvision.models.get_model_weights(model)[entry].meta["categories"]) or None


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


LIBRARIES: dict[str, Library] = {library.name: library for library in (Torchvision(), Timm())}
