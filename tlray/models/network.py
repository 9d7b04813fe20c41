"""The network as the encoder runs it: from pixels to the rows of the table's columns, folded and at the recipe's precision.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tlray.models.backbones import Backbone, to_network_input
from tlray.models.folding import fold_batch_norms, share_copy
from tlray.models.precision import autocast, lower, precision
from tlray.models.taps import Pooling, TapRunner
from tlray.recipe import Recipe, golden_images

_NORM_FLOOR = 1e-12
"""As `torch.nn.functional.normalize` has it."""


class Network(nn.Module):
    """Images_BHWC, uint8, to features_BD, float32, one tensor a tap of the recipe; safe in one thread at a time.

    Args:
        module: folded and lowered, in eval mode, on its device.
        recipe: complete.
        pooling: of the recipe, for this backbone.
        device: where the module is.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, pooling: Pooling, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self._recipe = recipe
        self._pooling = pooling
        self._device = device
        self._run = TapRunner(module, recipe.taps, pooling)

    @classmethod
    def of(cls, backbone: Backbone, device: torch.device, exact_below: int) -> "Network":
        """Fold and lower a backbone; it stays as it is.

        Args:
            backbone: on the CPU the copy shares its tensors where they need not change.
            device: where to run.
            exact_below: see `tlray.models.precision.lower`.
        """
        recipe = backbone.recipe
        crop = recipe.preprocessing.crop
        pooling = Pooling.of(backbone.module, recipe.pool, crop)
        probe_BCHW = to_network_input(torch.from_numpy(golden_images(*crop)[:1]), recipe.preprocessing)

        def embed(module: nn.Module) -> dict[str, Tensor]:
            return TapRunner(module, recipe.taps, pooling)(probe_BCHW)

        with precision(torch.device("cpu"), "fp32"):
            module = fold_batch_norms(backbone.module, recipe.taps, probe_BCHW, embed)
        module = module if device.type == "cpu" else copy.deepcopy(module)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.precision.compute != "fp32":
            lower(module, device, recipe.precision.compute, exact_below=exact_below)
        return cls(module, recipe, pooling, device)

    def again(self) -> "Network":
        """Another one for another thread, or for tracing; both hold the same tensors."""
        return Network(share_copy(self.module), self._recipe, self._pooling, self._device)

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, ...]:
        """One forward pass up to the last tap."""
        with autocast(self._device, self._recipe.precision.compute):
            features = self._run(to_network_input(images_BHWC, self._recipe.preprocessing))
            rows: Sequence[Tensor] = [features[tap].flatten(1) for tap in self._recipe.taps]
            if self._recipe.normalize:
                rows = [rows_BD / rows_BD.norm(dim=1, keepdim=True).clamp(min=_NORM_FLOOR) for rows_BD in rows]
        return tuple(rows)
