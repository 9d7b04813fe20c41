"""The network in training: a backbone, frozen up to its cut, and the head on its tap.

Shape legend: B rows, N rows of a split, H height, W width, C channels, D length of the tap's vector, K outputs.
"""

import hashlib

import torch
from torch import Tensor, nn

from tlray.models.backbones.images import Backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.layers.freezing import Anatomy, Frozen
from tlray.models.layers.heads import Head
from tlray.models.layers.suffix import Suffix
from tlray.models.layers.taps import TapRunner
from tlray.recipe import NORM_FLOOR
from tlray.training.network.processes import World

LEAST_SPREAD = 1e-3
"""The least of a feature's standard deviation, relative to the mean one; features that vary less are not scaled up."""


class TransferNetwork(nn.Module):
    """From images_BHWC (uint8), or activations_BD of a cut, to scores_BK (float32).

    Args:
        backbone: its module is trained in place, on the device where it is.
        anatomy: of the module, for the recipe's tap.
        cut: what is frozen; None for nothing.
        head: on the same device.
        suffix: takes the place of the whole backbone where inputs are activations.
        shape: of one activation.

    Attributes:
        backbone: the module.
        head: the head.
        frozen: what is trained and what is not, once all blocks are.
    """

    def __init__(
        self,
        backbone: Backbone,
        anatomy: Anatomy,
        cut: str | None,
        head: Head,
        *,
        suffix: Suffix | None = None,
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone.module, head
        self.anatomy, self.frozen = anatomy, anatomy.frozen_by(cut)
        self._recipe, self._shape = backbone.recipe, shape
        # Not a submodule: what it holds is the backbone's, and a state dict must name it once.
        self._suffix = (suffix,)
        self._pooling = backbone.pooling
        self._run = TapRunner(self.backbone, [anatomy.tap], self._pooling)
        self.release(len(anatomy.blocks))

    def release(self, blocks: int) -> None:
        """Train the last blocks, of those that are not frozen, and the head."""
        released = {name for block in self.anatomy.blocks[len(self.anatomy.blocks) - blocks :] for name in block}
        trained = self.frozen.trained & released
        resting = {name.rpartition(".")[0] for name in self.frozen.trained - trained}
        self._now = Frozen(self.frozen.cut, trained, self.frozen.active - resting)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TransferNetwork":
        """Training mode for what is trained alone."""
        super().train(mode)
        self._now.apply(self.backbone, mode)
        return self

    def features(self, inputs: Tensor) -> Tensor:
        """Features_BD of the tap, as a table of the recipe would hold them."""
        (suffix,) = self._suffix
        if suffix is None:
            features = self._run(to_network_input(inputs, self._recipe.preprocessing))[self.anatomy.tap]
        else:
            features = suffix(_unflatten(inputs, self._shape))
        features_BD = features.flatten(1)
        if self._recipe.normalize:
            features_BD = features_BD / features_BD.norm(dim=1, keepdim=True).clamp(min=NORM_FLOOR)
        return features_BD

    def forward(self, inputs: Tensor) -> Tensor:
        """scores_BK; the head computes at fp32 at any precision, as it does in predictions."""
        features_BD = self.features(inputs)
        with torch.autocast(features_BD.device.type, enabled=False):
            scores_BK: Tensor = self.head(features_BD.float())
        return scores_BK

    def standardise(self, features_BD: Tensor) -> None:
        """Set the head's mean and scale by features of the network as it is."""
        spread_D = features_BD.std(dim=0) if len(features_BD) > 1 else torch.zeros_like(features_BD[0])
        is_flat_D = spread_D <= LEAST_SPREAD * spread_D.mean()
        self.head.mean_D.copy_(features_BD.mean(dim=0))
        self.head.scale_D.copy_(torch.where(is_flat_D, torch.ones_like(spread_D), 1 / spread_D.clamp(min=NORM_FLOOR)))

    def scale_outputs(self, mean_K: Tensor, std_K: Tensor) -> None:
        """Turn a head that gives standardised values into one that gives the values themselves; mean and std in float64."""
        last = self.head.linears[-1]
        mean_K, std_K = mean_K.to(last.bias.device), std_K.to(last.bias.device)
        with torch.no_grad():
            last.weight.copy_(last.weight * std_K[:, None])
            last.bias.copy_(last.bias * std_K + mean_K)

    def learned(self) -> dict[str, Tensor]:
        """All tensors that training changes, by their names in `state_dict`; shared with the network."""
        names = {f"backbone.{name}" for name in self.frozen.trained}
        buffers = {name for name, _ in self.backbone.named_buffers() if name.rpartition(".")[0] in self.frozen.active}
        names |= {f"backbone.{name}" for name in buffers}
        state = self.state_dict()
        return {name: tensor for name, tensor in state.items() if name in names or name.startswith("head.")}

    def frozen_sha256(self) -> str:
        """Over names and bytes of all that must not change: `state_dict` without what `learned` gives, in its order."""
        learned, digest = self.learned(), hashlib.sha256()
        for name, tensor in self.state_dict().items():
            if name not in learned:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def load_learned(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `learned` gave, in place."""
        for name, tensor in self.learned().items():
            tensor.copy_(tensors[name])


def share_statistics(network: TransferNetwork, world: World) -> None:
    """Have all processes use the first one's statistics of batch norms; each has seen its own share of the rows."""
    learned = network.learned()
    for name, _ in network.named_buffers():
        if world.size > 1 and name in learned and learned[name].is_floating_point():
            own = learned[name]
            own.copy_(world.sum(own.clone() if world.rank == 0 else torch.zeros_like(own)))


def _unflatten(rows_BD: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Activations in their own shape; maps in the layout in which convolutions run fastest."""
    activations = rows_BD.reshape(len(rows_BD), *shape)
    return activations.contiguous(memory_format=torch.channels_last) if activations.ndim == 4 else activations
