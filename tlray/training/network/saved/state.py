"""What a training run has learned so far, as named tensors for a checkpoint, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tlray.training.network.learner.transfer_network import TransferNetwork
from tlray.training.network.saved.checkpoints import Parts

_OPTIMIZER = "optimizer."


def parts_of(
    network: TransferNetwork, optimizer: torch.optim.Optimizer, average: Mapping[str, Tensor], best: Mapping[str, Tensor]
) -> Parts:
    """The tensors of a checkpoint, by part and name.

    Args:
        network: in training.
        optimizer: of its parameters.
        average: moving average of what it learns; empty where there is none.
        best: what it had learned after its best epoch; empty where there was none.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    parts: dict[str, Mapping[str, Tensor]] = {"model": network.learned(), "average": average, "best": best}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            part = f"{_OPTIMIZER}{key}"
            parts[part] = {**parts.get(part, {}), names[parameter]: value}
    return parts


def restore(
    parts: Parts, network: TransferNetwork, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Bring a network and its optimizer to where a checkpoint is.

    Args:
        parts: of the checkpoint, on the CPU.
        network: that is changed.
        optimizer: that is changed.
        device: of the training.

    Returns:
        The moving average and the best epoch's tensors, on the device; as `parts_of` took them.
    """
    moved = {part: {name: tensor.to(device) for name, tensor in tensors.items()} for part, tensors in parts.items()}
    network.load_learned(moved["model"])
    parameters = dict(network.named_parameters())
    for part, tensors in moved.items():
        if part.startswith(_OPTIMIZER):
            key = part.removeprefix(_OPTIMIZER)
            for name, tensor in tensors.items():
                optimizer.state[parameters[name]][key] = tensor.cpu() if key == "step" else tensor
    return moved.get("average", {}), moved.get("best", {})
