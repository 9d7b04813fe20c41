"""torchvision's classification models: how each is built, and how its images are prepared."""

from collections.abc import Sequence

import torchvision
from torch import nn

from tlray.recipe import Preprocessing


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
