"""Networks that are built without drawing random numbers: what is loaded into them is all that they compute with."""

import threading
from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from torch import nn

from tlray.models.libraries.zoo.undrawn import Undrawn

OF_TIMM = (
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "swin_tiny_patch4_window7_224",
    "gmixer_12_224",
    "eva02_tiny_patch14_224",
)
OF_TORCHVISION = ("resnet18", "mobilenet_v3_small", "googlenet", "swin_t")


def built(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name) if name in OF_TIMM else torchvision.models.get_model(name, weights=None)


def tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers that a state dict has or has not, and tensors that layers keep without a word."""
    yield from module.named_parameters()
    for place, layer in module.named_modules():
        for name, value in [*layer.named_buffers(recurse=False), *vars(layer).items()]:
            if isinstance(value, torch.Tensor):
                yield f"{place}.{name}", value


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", [*OF_TIMM, *OF_TORCHVISION])
def test_all_but_parameters_is_as_ever(name: str) -> None:
    usual = dict(tensors_of(built(name)))
    with Undrawn():
        undrawn = dict(tensors_of(built(name)))
    assert undrawn.keys() == usual.keys()
    parameters = {key: tensor for key, tensor in undrawn.items() if isinstance(tensor, nn.Parameter)}
    for key in undrawn.keys() - parameters.keys():
        assert torch.equal(undrawn[key], usual[key]), key
    missing = sum(int(tensor.isnan().sum()) for tensor in parameters.values())
    assert missing > 0.3 * sum(tensor.numel() for tensor in parameters.values())


def test_other_threads_draw_as_ever() -> None:
    found = []
    with Undrawn():
        thread = threading.Thread(target=lambda: found.append(nn.Linear(3, 4).weight.isnan().any()))
        thread.start()
        thread.join()
        assert nn.Linear(3, 4).weight.isnan().all()
    assert not found[0] and not nn.Linear(3, 4).weight.isnan().any()
