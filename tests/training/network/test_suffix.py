"""A network's part after a cut gives what the whole network gives, and learns what it would."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.training.network.test_freezing import Skipping, images
from tlray.errors import BackboneError
from tlray.models.layers.pooling import Pooling
from tlray.models.layers.suffix import split_suffix
from tlray.models.layers.taps import TapRunner
from tlray.models.libraries.timm import Timm

CASES = [
    (Skipping, "late", "norm"),
    (Skipping, "stem", "head:input"),
    (lambda: timm.create_model("test_resnet"), "layer2", "global_pool.pool"),
    (lambda: timm.create_model("test_vit"), "blocks.1", "head:input"),
    (lambda: timm.create_model("test_efficientnet"), "blocks.2", "global_pool.pool"),
    (lambda: torchvision.models.mobilenet_v3_small(), "features.4", "avgpool"),
]


def parts(make: object, cut: str, tap: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The network, its suffix, what the cut gives, what the tap gives; gradients are on in all of it."""
    torch.manual_seed(0)
    module = make().eval()
    probe = images(2)
    pooling = Pooling("avg", 160, 160, Timm().layout(module))
    suffix = split_suffix(module, cut, tap, pooling, probe)
    seen: list[Tensor] = []
    handle = module.get_submodule(cut).register_forward_hook(
        lambda _layer, _inputs, output: seen.append(output.detach().clone())
    )
    features = TapRunner(module, [tap], pooling)(probe)[tap]
    handle.remove()
    return module, suffix, seen[-1], features


@pytest.mark.parametrize(("make", "cut", "tap"), CASES)
def test_a_suffix_gives_features_and_gradients_of_the_whole(make: object, cut: str, tap: str) -> None:
    module, suffix, activations, features = parts(make, cut, tap)
    features.square().sum().backward()
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    found = suffix(activations)
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-6)
    found.square().sum().backward()
    reached = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    assert reached and len(reached) < len(expected)
    for name in reached:
        gradient = dict(module.named_parameters())[name].grad
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_a_suffix_shares_its_parameters_and_modes() -> None:
    module, suffix, activations, _ = parts(Skipping, "stem", "norm")
    apart = copy.deepcopy(suffix)
    with torch.no_grad():
        module.shift[0] += 1.0
    assert not torch.allclose(suffix(activations.clone()), apart(activations.clone()))
    module.train()
    before = module.late[1].running_mean.clone()
    assert not torch.equal(suffix(activations.clone()), suffix(activations.clone()))  # dropout after the cut is on
    assert not torch.equal(module.late[1].running_mean, before)


def test_what_is_not_a_cut_is_refused_with_those_that_are() -> None:
    for cut in ("middle", "act", "head", "unused"):
        with pytest.raises(BackboneError, match=rf"cannot cut at '{cut}'.*stem.*late.*norm"):
            parts(Skipping, cut, "norm")
    with pytest.raises(BackboneError, match="no layer 'nowhere'"):
        parts(Skipping, "nowhere", "norm")


class Undecided(nn.Module):
    """Goes one way or another by the values of its input, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.mean() > 0 else -self.second(x)


def test_a_network_that_cannot_be_traced_says_so() -> None:
    with pytest.raises(BackboneError, match=r"cannot be traced.*train it from images"):
        parts(Undecided, "first", "second")
