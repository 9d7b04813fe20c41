"""The network as the encoder runs it: from pixels to the rows of the table's columns, folded and at the recipe's precision.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from tlray.models.backbones.images import Backbone, probe_of
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.network.folding import fold_batch_norms, share_copy
from tlray.models.encoder.network.packing import Packable, find_packable, pack
from tlray.models.encoder.network.precision import lower
from tlray.models.layers.pooling import Pooling
from tlray.models.layers.taps import TapRunner
from tlray.models.process.device import autocast, computes_as, precision
from tlray.recipe import NORM_FLOOR, Compute, Preprocessing, Recipe


class Network(nn.Module):
    """Images_BHWC, uint8, to features_BD, float32, one tensor a tap of the recipe; safe in one thread at a time.

    Args:
        module: folded and lowered, in eval mode, on its device.
        recipe: complete.
        compute: what `module` was lowered to.
        pooling: of the recipe, for this backbone.
        device: where the module is.
        prepare: what brings pixels to what the module takes.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        compute: Compute,
        pooling: Pooling,
        device: torch.device,
        prepare: Callable[[Tensor, Preprocessing], Tensor] = to_network_input,
    ) -> None:
        super().__init__()
        self.module = module
        self._recipe = recipe
        self._compute = compute
        self._pooling = pooling
        self._device = device
        self._prepare = prepare
        self._run = TapRunner(module, recipe.taps, pooling)

    @classmethod
    def of(cls, backbone: Backbone, device: torch.device, exact_below: int) -> "Network":
        """Fold and lower a backbone; what comes of it can be traced.

        Args:
            backbone: stays as it is; on the CPU the network shares its tensors where they need not change.
            device: where to run.
            exact_below: see `tlray.models.encoder.network.precision.lower`.
        """
        return Folded.of(backbone).network(device, computes_as(device, backbone.recipe.precision.compute), exact_below)

    def again(self) -> "Network":
        """Another one for another thread, or for tracing; both hold the same tensors."""
        module = share_copy(self.module)
        return Network(module, self._recipe, self._compute, self._pooling, self._device, self._prepare)

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, ...]:
        """One forward pass up to the last tap."""
        with autocast(self._device, self._compute):
            features = self._run(self._prepare(images_BHWC, self._recipe.preprocessing))
            rows: Sequence[Tensor] = [features[tap].flatten(1) for tap in self._recipe.taps]
            if self._recipe.normalize:
                rows = [rows_BD / rows_BD.norm(dim=1, keepdim=True).clamp(min=NORM_FLOOR) for rows_BD in rows]
        return tuple(rows)


@dataclass(frozen=True)
class Folded:
    """A backbone with its batch norms folded, from which networks of any precision are made.

    Attributes:
        module: fp32, on the CPU.
        packable: what can be packed in it.
        recipe: of the backbone.
        pooling: likewise.
    """

    module: nn.Module
    packable: Sequence[Packable]
    recipe: Recipe
    pooling: Pooling

    @classmethod
    def of(cls, backbone: Backbone, *, packed: bool = False) -> "Folded":
        """Fold a backbone, which stays as it is; a `FoldedOnce` is packed once alone.

        Args:
            backbone: shares its tensors where they need not change.
            packed: whether networks on a CPU run their layers as oneDNN runs them best
                (`tlray.models.encoder.network.packing`); such networks cannot be traced.
        """
        return backbone.packed if packed and isinstance(backbone, FoldedOnce) else cls._made(backbone, packed=packed)

    @classmethod
    def _made(cls, backbone: Backbone, *, packed: bool) -> "Folded":
        recipe = backbone.recipe
        pooling = backbone.pooling
        probe_BCHW = probe_of(recipe.preprocessing)

        def embed(module: nn.Module) -> dict[str, Tensor]:
            return TapRunner(module, recipe.taps, pooling)(probe_BCHW)

        with precision(torch.device("cpu"), "fp32"):
            module = fold_batch_norms(backbone.module, recipe.taps, embed)
            packable = find_packable(module, recipe.taps, embed) if packed else []
        return cls(module, packable, recipe, pooling)

    def network(self, device: torch.device, compute: Compute, exact_below: int) -> Network:
        """A network that computes so; see `tlray.models.encoder.network.precision.lower`."""
        module = share_copy(self.module) if device.type == "cpu" else copy.deepcopy(self.module)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compute != "fp32":
            lower(module, device, compute, exact_below=exact_below)
        if device.type == "cpu":
            pack(module, self.packable)
        return Network(module, self.recipe, compute, self.pooling, device)


class FoldedOnce(Backbone):
    """A backbone of which several encoders are made: what they have in common is made once, and kept as long as this is.

    Its tensors must stay as they are.
    """

    @classmethod
    def of(cls, backbone: Backbone) -> "FoldedOnce":
        """The same backbone."""
        return cls(**{each.name: getattr(backbone, each.name) for each in fields(backbone)})

    @cached_property
    def packed(self) -> Folded:
        """This backbone folded, and what can be packed in it."""
        return Folded._made(self, packed=True)
