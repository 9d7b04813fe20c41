"""torchvision's classification models: how each is built, and how its images are prepared."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torchvision
from torch import nn
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from tlray.models.layers.pooling import Layout
from tlray.models.libraries.zoo.torch_library import TorchLibrary
from tlray.models.libraries.zoo.zoo import Variant, Zoo
from tlray.models.weights.digest import State
from tlray.recipe import Preprocessing

_OLD_DENSE_NAMES = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
"""Old names of tensors, as `torchvision.models.densenet` finds them: its published files have names from before dots were
forbidden in them."""

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers of GoogLeNet and Inception that only training runs
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")
_SIZE_SLACK_BYTES = 4096  # torchvision gives sizes in MiB, to three decimals


class Torchvision(Zoo):
    """What is known of torchvision's models."""

    name = "torchvision"

    def models(self) -> Sequence[str]:
        """Names of all of torchvision's classification models."""
        return list(torchvision.models.list_models(module=torchvision.models))

    def entries(self, model: str) -> list[str]:
        """Names of the model's weights enum."""
        return [entry.name for entry in torchvision.models.get_model_weights(model)]

    def default_entry(self, model: str) -> str:
        """What DEFAULT stands for in this version of torchvision."""
        return str(torchvision.models.get_model_weights(model).DEFAULT.name)

    def entry_of(self, model: str, text: str) -> str | None:
        """The member of the weights enum of a name, with or without the enum's own and `torchvision:` before it."""
        enum = torchvision.models.get_model_weights(model)
        name = text.removeprefix("torchvision:").removeprefix(f"{enum.__name__}.")
        return str(enum[name].name) if name in enum.__members__ else None

    def qualified(self, model: str, entry: str) -> str:
        """The enum's name and the entry's: `torchvision:<enum>.<entry>`."""
        return f"torchvision:{torchvision.models.get_model_weights(model).__name__}.{entry}"

    def source(self, model: str, entry: str) -> str:
        """The URL that torchvision downloads an entry from."""
        return str(torchvision.models.get_model_weights(model)[entry].url)

    def build(self, model: str, entry: str, variant: Variant) -> nn.Module:
        """Make the network as the model's builder does it when it is given weights, which is part of what the weights mean.

        The numbers of classes and pixels come from the weights' metadata; Inception and GoogLeNet rescale their input
        themselves (`transform_input`), and are built without their auxiliary classifiers, which only training runs.
        """
        meta = torchvision.models.get_model_weights(model)[entry].meta
        arguments: dict[str, object] = {}
        if variant.outputs or meta["categories"]:
            arguments["num_classes"] = variant.outputs or len(meta["categories"])
        if model.startswith("vit_"):
            height, width = variant.crop or (meta["min_size"][0], meta["min_size"][0])
            if height != width:
                raise ValueError("its images are square")
            arguments["image_size"] = height
        if model.startswith("maxvit_") and variant.crop:
            arguments["input_size"] = variant.crop
        if model in ("googlenet", "inception_v3"):
            arguments |= {"transform_input": True, "aux_logits": False, "init_weights": False}
        module: nn.Module = torchvision.models.get_model(model, weights=None, **arguments)
        return module

    def download(self, model: str, entry: str) -> nn.Module:
        """`torchvision.models.get_model`, which checks the hash in the file's name."""
        weights = torchvision.models.get_model_weights(model)[entry]
        module: nn.Module = torchvision.models.get_model(model, weights=weights, progress=False)
        return module

    def takes(self, module: nn.Module, crop: tuple[int, int]) -> bool:
        """All sizes, but for vision transformers and MaxViT, which are built for one."""
        if isinstance(module, VisionTransformer):
            return crop == (module.image_size, module.image_size)
        # MaxViT keeps no size of its own; its grids come from that of its blocks, and all its weights are for 224.
        return not isinstance(module, MaxVit) or crop == (224, 224)

    def convert(self, model: str, state: State, module: nn.Module) -> State:
        """Old names of DenseNets, no auxiliary classifiers, and position embeddings resized as torchvision does it."""
        found = {name: tensor for name, tensor in state.items() if not name.startswith(_AUXILIARY)}
        if model.startswith("densenet"):
            found = {_OLD_DENSE_NAMES.sub(r"\1\2", name): tensor for name, tensor in found.items()}
        if isinstance(module, VisionTransformer) and "encoder.pos_embedding" in found:
            found = interpolate_embeddings(module.image_size, module.patch_size, OrderedDict(found))
        return found

    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:  # noqa: ARG002
        """The preprocessing of `weights.transforms()`: the shortest side to `resize_size`, then a square from the centre."""
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

    def layout(self, module: nn.Module) -> Layout:
        """Vision transformers have a class token; Swin's maps have their channels last."""
        is_vit = isinstance(module, VisionTransformer)
        return Layout(int(is_vit), is_vit, isinstance(module, SwinTransformer))

    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:  # noqa: ARG002
        """Always None, as torchvision does not say which modules classify."""
        return None

    def classifier_names(self, module: nn.Module) -> Sequence[str]:
        """The last linear or convolution layer, which in all of these models gives the scores."""
        return [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1:]

    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:  # noqa: ARG002
        """The categories of the weights' metadata."""
        return list(torchvision.models.get_model_weights(model)[entry].meta["categories"]) or None

    def published_as(self, model: str, path: Path, name: str) -> str | None:
        """By the name of an entry's file, whatever its suffix; else by the hash that torchvision checks after a download."""
        digest: str | None = None
        for entry in torchvision.models.get_model_weights(model):
            published = PurePosixPath(entry.url).name
            if PurePosixPath(published).stem == PurePosixPath(name).stem:
                return str(entry.name)
            match = _HASH_IN_NAME.search(published)
            size_bytes = entry.meta["_file_size"] * 2**20
            if match and abs(path.stat().st_size - size_bytes) <= _SIZE_SLACK_BYTES:
                digest = digest or _sha256(path)
                if digest.startswith(match[1]):
                    return str(entry.name)
        return None


def library() -> TorchLibrary:
    """torchvision, as a library of backbones."""
    return TorchLibrary(Torchvision())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
