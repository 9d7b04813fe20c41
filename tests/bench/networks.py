"""The network as the peers use it: eagerly at fp32, as their documents do, or through our encoder.

Both load the same weights. Shape legend: B images, H height, W width, C channels, D output length.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from tests.bench.harness import Job
from tlray.config import RecipeConfig
from tlray.lake.image.resize import apply_preprocessing
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import open_encoder
from tlray.models.encoder.memory import keep_freed_memory
from tlray.recipe import Precision, Preprocessing

OURS = ("", "+encoder", "+encoder+resize")
"""What of ours a peer has inside."""


def recipe_config(job: Job) -> RecipeConfig:
    """What the job asks of a recipe."""
    return RecipeConfig(
        backbone=job.backbone, weights=job.weights, precision=Precision.model_validate({"compute": job.compute})
    )


def load(job: Job) -> Backbone:
    """The job's backbone with its weights, on the CPU."""
    return resolve_backbone(recipe_config(job), local_copy)


def gpus() -> int:
    """Accelerators that one network takes."""
    return int(torch.cuda.is_available())


class EagerNetwork:
    """The forward pass as the documents of the peers write it, classifier included."""

    def __init__(self, job: Job) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = load(job).module.to(self.device)
        self.network.eval()
        self.log = job.batch_log

    def __call__(self, images_BCHW: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            outputs_BD = self.network(images_BCHW.to(self.device)).cpu().numpy()
        self.log.add(len(outputs_BD))
        return outputs_BD


class OurNetwork:
    """Our encoder as our own extraction uses it: a lane on each core, whatever the engine left it, by what `auto` takes."""

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        self.encoder = open_encoder(load(job), lanes=os.cpu_count(), engine="auto", images=len(job.paths))
        assert isinstance(self.encoder, Encoder)
        self.log = job.batch_log

    def __call__(self, images_BHWC: torch.Tensor) -> np.ndarray:
        (features_BD,) = self.encoder.encode(images_BHWC.numpy()).values()
        self.log.add(len(features_BD))
        return features_BD


def eager_transform(preprocessing: Preprocessing, *, from_array: bool) -> transforms.Compose:
    """The weights' preprocessing in torchvision's words, to float32 CHW.

    Args:
        preprocessing: of the weights.
        from_array: arrays come in, which the documents make tensors of first, and then resize; else pictures of Pillow.
    """
    assert preprocessing.resize is not None
    geometry = [
        transforms.Resize(preprocessing.resize[0], transforms.InterpolationMode(preprocessing.interpolation)),
        transforms.CenterCrop(preprocessing.crop),
    ]
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    if from_array:
        return transforms.Compose([transforms.ToTensor(), *geometry, normalize])
    return transforms.Compose([*geometry, transforms.ToTensor(), normalize])


def transform_for(preprocessing: Preprocessing, ours: str, *, from_array: bool) -> Callable[[Image.Image | np.ndarray], object]:
    """A peer's transform: to float32 CHW for the eager network, to uint8 HWC for our encoder, which normalises on the device.

    Args:
        preprocessing: of the weights.
        ours: one of `OURS`.
        from_array: as of `eager_transform`.
    """
    if not ours:
        return eager_transform(preprocessing, from_array=from_array)
    assert preprocessing.resize is not None
    resize = transforms.Resize(preprocessing.resize[0], transforms.InterpolationMode(preprocessing.interpolation))
    crop = transforms.CenterCrop(preprocessing.crop)

    def transform(image: Image.Image | np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        if ours == "+encoder":
            return np.asarray(crop(resize(picture))).copy()
        return apply_preprocessing(picture, preprocessing).copy()

    return transform
