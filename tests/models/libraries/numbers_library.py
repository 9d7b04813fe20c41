"""A library of a package that is none of tlray's: it computes in NumPy, so that no hook sees its layers.

The last of its numbers are an affine map of the mean colours of a grid of 4 x 4 fields.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tlray.errors import WeightsError
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.weights.digest import hash_tensors
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Preprocessing

GRID, LENGTH = 4, 6


class Colours(nn.Module):
    """As another runtime would be held: one object, whose layers have names of their own."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.matrix = matrix

    def layers(self) -> Sequence[str]:
        return ["fields/mean:0", "dense"]

    def outputs(self, images_BCHW: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        images = images_BCHW.detach().cpu().numpy()
        count, channels, height, width = images.shape
        fields = images.reshape(count, channels, GRID, height // GRID, GRID, width // GRID).mean((3, 5))
        found = {"fields/mean:0": fields, "dense": fields.reshape(count, -1) @ self.matrix}
        return {tap: torch.from_numpy(np.ascontiguousarray(found[tap], np.float32)) for tap in taps}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.outputs(images_BCHW, ["dense"])["dense"]


class Numbers:
    name = "numbers"

    def models(self) -> Sequence[str]:
        return ["colours"]

    def has(self, model: str) -> bool:
        return model == "colours"

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        if request.weights.startswith("random:"):
            seed = int(request.weights.removeprefix("random:"))
            matrix = np.random.default_rng(seed).standard_normal((3 * GRID * GRID, LENGTH), np.float32)
        else:
            path = fetch(request.weights)
            if not path.is_file():
                raise WeightsError(f"there is no weights file {request.weights}")
            matrix = np.load(path)
        return Pretrained(
            backbone=f"numbers:{request.model}",
            weights=request.weights,
            weights_sha256=hash_tensors([("matrix", torch.from_numpy(matrix))]),
            module=Colours(matrix).eval(),
            preprocessing=Preprocessing(
                resize=(32, 32),
                fit="squash",
                crop=(32, 32),
                interpolation="box",
                channels="bgr",
                scale=(0, 255),
                mean=(103.939, 116.779, 123.68),
                std=(1, 1, 1),
            ),
            default_tap="dense",
        )
