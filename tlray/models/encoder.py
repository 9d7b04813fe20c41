"""The encoder: batches of RGB uint8 images to embeddings, on the CPU or an accelerator; plain torch, no Ray.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import copy
import math
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from tlray.errors import BackboneError, ConfigError
from tlray.models.backbones import Backbone, to_network_input
from tlray.models.folding import fold_batch_norms
from tlray.models.precision import keep_short_sums_exact, precision
from tlray.models.taps import Pooling, TapRunner
from tlray.recipe import GOLDEN_IMAGE_COUNT, Precision, RecipeFile, golden_images

_BATCH_PIXELS = {"cuda": 256 * 224**2, "mps": 64 * 224**2, "cpu": 16 * 224**2}
"""Pixels in a batch: 256, 64 and 16 images of 224 pixels. Rules of thumb, not measurements: enough to keep the device busy,
few enough that the activations of common networks fit many times over."""

_NORM_FLOOR = 1e-12
"""As `torch.nn.functional.normalize` has it."""


class Encoder:
    """Embeds images by a backbone's recipe.

    Its network is a copy of the backbone's with the batch norms folded into the convolutions (`tlray.models.folding`). The
    recipe's precision.compute means: `fp32`, all of it, without TF32; `bf16` and `fp16`, what `torch.autocast` computes so,
    but for layers that add up few terms, which stay at fp32 (`tlray.models.precision.SHORT_SUM`).

    Args:
        backbone: on the CPU the copy shares its tensors (their memory layout becomes channels_last); their values stay.
        device: `auto` (CUDA, else Apple's MPS, else the CPU) or a name that torch knows.
        batch_size: images in one forward pass; default by device and input size. Every pass has this many, the last one
            being padded, so that an embedding does not depend on how many images are asked for; for single images ask
            for 1. It is halved where the device's memory is too small.

    Raises:
        ConfigError: there is no such device, or a batch size under 1.
    """

    def __init__(self, backbone: Backbone, *, device: str = "auto", batch_size: int | None = None) -> None:
        self.backbone = backbone
        self.device = _choose_device(device)
        recipe = backbone.recipe
        crop = recipe.preprocessing.crop
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
        self.batch_size = batch_size or max(1, _BATCH_PIXELS.get(self.device.type, _BATCH_PIXELS["cpu"]) // math.prod(crop))
        module = _own_network(backbone, self.device)
        if recipe.precision.compute != "fp32":
            keep_short_sums_exact(module, self.device)
        self._run = TapRunner(module, recipe.taps, Pooling.of(module, recipe.pool, crop))
        # Reused, and page-locked where a device copies from it: one short copy a batch, whoever owns the images.
        self._staging_BHWC = torch.zeros((self.batch_size, *crop, 3), dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def encode(self, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """Embed images.

        Args:
            images_BHWC: uint8 RGB of the recipe's crop, any number of them; not changed, and may be read-only.

        Returns:
            Per table column features_BD, float32; what is not finite is passed on.

        Raises:
            ConfigError: images of another type or shape, a precision that the device cannot compute, or a device whose
                memory is too small for one image.
        """
        self._check(images_BHWC)
        count = len(images_BHWC)
        columns = {name: np.empty((count, math.prod(shape)), np.float32) for name, shape in self.backbone.shapes.items()}
        start = 0
        while start < count:
            try:
                batch = self._encode_batch(images_BHWC[start : start + self.batch_size])
            except torch.OutOfMemoryError as error:
                self._halve_batch(error)
                continue
            for name, features_BD in batch.items():
                columns[name][start : start + len(features_BD)] = features_BD
            start += self.batch_size
        return columns

    def _check(self, images_BHWC: np.ndarray) -> None:
        expected = (*self.backbone.recipe.preprocessing.crop, 3)
        if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[1:] != expected:
            raise ConfigError(
                f"images are {images_BHWC.dtype} {images_BHWC.shape}, expected uint8 (B, {', '.join(map(str, expected))})"
            )

    def _encode_batch(self, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """One forward pass of the full batch size; rows of padding are dropped."""
        recipe = self.backbone.recipe
        staging_BHWC = self._staging_BHWC[: self.batch_size]
        staging_BHWC.numpy()[: len(images_BHWC)] = images_BHWC
        staging_BHWC[len(images_BHWC) :] = 0
        with torch.inference_mode(), precision(self.device, recipe.precision.compute):
            features = self._run(to_network_input(staging_BHWC.to(self.device), recipe.preprocessing))
            rows = {tap: tensor.flatten(1)[: len(images_BHWC)] for tap, tensor in features.items()}
            if recipe.normalize:
                rows = {
                    tap: rows_BD / rows_BD.norm(dim=1, keepdim=True).clamp(min=_NORM_FLOOR) for tap, rows_BD in rows.items()
                }
            return {recipe.columns[tap]: rows_BD.cpu().numpy() for tap, rows_BD in rows.items()}

    def _halve_batch(self, error: torch.OutOfMemoryError) -> None:
        if self.batch_size == 1:
            height, width = self.backbone.recipe.preprocessing.crop
            raise ConfigError(
                f"{self.device} has no memory for {self.backbone.recipe.backbone} on one {height}x{width} image: {error}; "
                "use a larger device, a smaller crop or a smaller backbone"
            ) from error
        self.batch_size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}; use auto, cpu, cuda or mps") from error
    return device


def _own_network(backbone: Backbone, device: torch.device) -> nn.Module:
    recipe = backbone.recipe
    crop = recipe.preprocessing.crop
    probe_BCHW = to_network_input(torch.from_numpy(golden_images(*crop)[:1]), recipe.preprocessing)

    def embed(module: nn.Module) -> dict[str, torch.Tensor]:
        return TapRunner(module, recipe.taps, Pooling.of(backbone.module, recipe.pool, crop))(probe_BCHW)

    with precision(torch.device("cpu"), "fp32"):
        module = fold_batch_norms(backbone.module, recipe.taps, probe_BCHW, embed)
    module = module if device.type == "cpu" else copy.deepcopy(module)
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def make_recipe_file(backbone: Backbone) -> RecipeFile:
    """What a new table keeps of its backbone: the recipe, and the golden images embedded at fp32, eagerly, on the CPU.

    Raises:
        BackboneError: the embeddings are not finite.
    """
    recipe = backbone.recipe
    exact = recipe.model_copy(update={"precision": Precision(compute="fp32", storage=recipe.precision.storage)})
    encoder = Encoder(replace(backbone, recipe=exact), device="cpu", batch_size=GOLDEN_IMAGE_COUNT)
    golden = encoder.encode(golden_images(*recipe.preprocessing.crop))
    for column, features_BD in golden.items():
        if not np.isfinite(features_BD).all():
            raise BackboneError(f"{recipe.backbone} gives {column} that is not finite; use other weights or another layer")
    return RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes=backbone.shapes,
        golden={column: features_BD.tolist() for column, features_BD in golden.items()},
        made_with={package: version(package) for package in ("tlray", "torch", "torchvision", "timm")},
    )
