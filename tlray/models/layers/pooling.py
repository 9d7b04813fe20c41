"""Pooling: from what a layer puts out to one tensor an image.

Shape legend: B images, C channels, H height, W width, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tlray.errors import BackboneError
from tlray.recipe import Pool

GEM_POWER = 3.0
GEM_FLOOR = 1e-6
"""Generalised mean: p = 3 is where Radenovic et al. start (Fine-tuning CNN image retrieval, 2018, arXiv 1711.02512); the floor
is their published code's."""


@dataclass(frozen=True)
class Layout:
    """Where a network's layers keep class tokens and channels.

    Attributes:
        prefix_tokens: how many tokens (class, distillation, registers) come before those of the patches.
        has_class_token: whether the first of them is a class token.
        is_nhwc: whether channels come last in a map whose three sizes are equal; in others the sizes tell.
        keeps_nhwc: whether a map that is kept whole has its channels last though its layer has them first: the order that the
            library itself has, where torch computes what is another one's.
    """

    prefix_tokens: int = 0
    has_class_token: bool = False
    is_nhwc: bool = False
    keeps_nhwc: bool = False


NO_TOKENS = Layout()
"""The layout of convolutional networks, and of others without class tokens."""


@dataclass(frozen=True)
class Pooling:
    """From what a layer puts out to one tensor an image.

    Attributes:
        pool: the recipe's.
        input_height: of the network's input, in pixels; tells the spatial dimensions of a map.
        input_width: likewise.
        layout: of the network.
    """

    pool: Pool
    input_height: int
    input_width: int
    layout: Layout

    def __call__(self, tap: str, features: Tensor) -> Tensor:
        """Pool what a layer puts out, in fp32.

        Args:
            tap: for messages.
            features: what the layer put out: a map (BCHW or BHWC), tokens (BNC), vectors (BC), or anything where
                nothing is pooled.

        Returns:
            A float32 tensor of B rows that shares no memory with `features`, so that a later in-place layer cannot change it.

        Raises:
            BackboneError: the pooling does not fit the shape.
        """
        if self.pool in ("flatten", "none") or features.ndim == 2:
            is_turned = self.layout.keeps_nhwc and features.ndim == 4
            return (features.permute(0, 2, 3, 1) if is_turned else features).to(torch.float32, copy=True)
        if features.ndim == 3:
            return self._pool_tokens(tap, features.float())
        if features.ndim == 4 and self.pool != "cls":
            return self._reduce(features.float(), self._spatial_dims(tap, features))
        raise BackboneError(
            f"pool {self.pool} does not fit layer {tap}, which gives {tuple(features.shape[1:])} an image; "
            "cls needs a sequence with a class token, the others a map, a sequence or a vector: use flatten, or another layer"
        )

    def restored(self, kept: Tensor) -> Tensor:
        """What a layer put out, of what pool `none` kept of it."""
        return kept.permute(0, 3, 1, 2) if self.layout.keeps_nhwc and kept.ndim == 4 else kept

    def _pool_tokens(self, tap: str, tokens_BNC: Tensor) -> Tensor:
        count = tokens_BNC.shape[1]
        prefix = self._prefix_of(tap, tokens_BNC)
        if self.pool == "cls":
            if not (prefix and self.layout.has_class_token):
                raise BackboneError(f"pool cls: layer {tap} has no class token; use avg, max or gem, or another layer")
            return tokens_BNC[:, 0].clone()
        if prefix == count > 1:
            raise BackboneError(
                f"pool {self.pool}: layer {tap} gives {count} tokens, all of them class tokens and the like, none of patches; "
                "use cls or flatten, or another layer"
            )
        return self._reduce(tokens_BNC[:, 0 if count == 1 else prefix :], (1,))

    def _prefix_of(self, tap: str, tokens_BNC: Tensor) -> int:
        """How many tokens of a sequence are not patches': the count of the others tells, as it makes a grid.

        A layer before class tokens are added has a grid without them. Late layers of some networks give class tokens alone.
        """
        count, prefix = tokens_BNC.shape[1], self.layout.prefix_tokens
        if prefix and count in (1, prefix):
            return int(count)
        if self._is_grid(count - prefix):
            return prefix
        if self._is_grid(count):
            return 0
        raise BackboneError(
            f"layer {tap} gives {tuple(tokens_BNC.shape[1:])} an image, and {count} are no tokens of patches in a grid of the "
            f"{self.input_height}x{self.input_width} input; use pool flatten, or another layer"
        )

    def _is_grid(self, tokens: int) -> bool:
        """Whether so many tokens make a grid with the ratio of the input, to within one position."""
        middle = round((max(tokens, 0) * self.input_height / self.input_width) ** 0.5)
        rows = (count for count in (middle - 1, middle, middle + 1) if count > 0 and tokens % count == 0)
        return tokens > 0 and any(self._is_spatial(count, tokens // count) for count in rows)

    def _spatial_dims(self, tap: str, features: Tensor) -> tuple[int, int]:
        """The two neighbouring dimensions whose ratio is the input's, to within one position."""
        fitting = [dims for dims in ((2, 3), (1, 2)) if self._is_spatial(features.shape[dims[0]], features.shape[dims[1]])]
        if not fitting:
            raise BackboneError(
                f"layer {tap} gives {tuple(features.shape[1:])} an image: no two neighbouring dimensions have the ratio of the "
                f"{self.input_height}x{self.input_width} input, so it is not a map; use pool flatten, or another layer"
            )
        return (1, 2) if self.layout.is_nhwc and len(fitting) == 2 else fitting[0]

    def _is_spatial(self, rows: int, columns: int) -> bool:
        return abs(rows * self.input_width - columns * self.input_height) < min(self.input_height, self.input_width)

    def _reduce(self, features: Tensor, dims: tuple[int, ...]) -> Tensor:
        if self.pool == "max":
            return features.amax(dims)
        if self.pool == "gem":
            return features.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean(dims).pow(1 / GEM_POWER)
        return features.mean(dims)
