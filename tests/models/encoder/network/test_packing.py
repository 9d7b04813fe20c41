"""Packed layers against torch's own, layer by layer."""

from collections.abc import Callable

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from tlray.models.encoder.network.folding import share_copy
from tlray.models.encoder.network.packing import PackedConvolution, PackedLinear, find_packable, pack
from tlray.models.layers.pooling import Layout, Pooling
from tlray.models.layers.taps import TapRunner

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Net(nn.Module):
    """Two layers and an activation each; `use` may do something to the first one's output that no hook sees."""

    def __init__(
        self,
        first: nn.Module,
        act: nn.Module,
        use: Callable[[Tensor, Tensor], Tensor] = lambda _before, after: after,
    ) -> None:
        super().__init__()
        self.first, self.gap, self.act1, self.use = first, nn.Identity(), act, use
        self.second, self.act2 = nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        after = self.act1(self.gap(before))
        out: Tensor = self.act2(self.second(self.use(before, after)))
        return out


def packed(module: nn.Module, *taps: str, size: tuple[int, int] = (16, 13)) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    module = module.eval().to(memory_format=torch.channels_last)
    images_BCHW = 3 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)

    def embed(one: nn.Module) -> dict[str, Tensor]:
        return TapRunner(one, taps, Pooling("none", *size, Layout()))(images_BCHW)

    copy = share_copy(module)
    pack(copy, find_packable(module, taps, embed))

    def features(one: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([each.flatten() for each in embed(one).values()])

    return copy, features


def count(module: nn.Module) -> int:
    return sum(isinstance(layer, (PackedConvolution, PackedLinear)) for layer in module.modules())


@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Hardtanh(-0.5, 0.7), nn.SiLU(inplace=True), nn.Hardswish(),
        nn.GELU(), nn.GELU("tanh"), nn.Softplus(),
    ],
    ids=str,
)  # fmt: skip
def test_activations(act: nn.Module) -> None:
    torch.manual_seed(0)
    module = Net(nn.Conv2d(3, 8, 3, padding=1), act)
    ours, features = packed(module, "act1", "act2")
    assert count(ours) == 2
    assert isinstance(ours.act1, nn.Identity) == (not isinstance(act, nn.Softplus))
    assert isinstance(ours.act2, nn.Identity)
    torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 13), (15, 14), (17, 17)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_as_tensorflow_does_it(size: tuple[int, int], kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    module = Net(Conv2dSame(3, 8, kernel, stride), nn.ReLU6())
    ours, features = packed(module, "act2", size=size)
    assert count(ours) == 2
    torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)


def test_what_is_tapped_or_used_elsewhere_stays() -> None:
    torch.manual_seed(0)
    for taps in (("first", "act2"), ("act1:input", "act2"), ("gap", "act2")):
        module = Net(nn.Conv2d(3, 8, 3), nn.ReLU())
        ours, features = packed(module, *taps)
        assert count(ours) == 2
        assert isinstance(ours.act1, nn.ReLU)
        torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)
    skips = Net(nn.Conv2d(3, 8, 3), nn.ReLU(), lambda before, after: before + after)
    ours, features = packed(skips, "act2")  # seen in the features only: without the activations then
    assert count(ours) == 2 and isinstance(ours.act1, nn.ReLU) and isinstance(ours.act2, nn.ReLU)
    torch.testing.assert_close(features(ours), features(skips), rtol=1e-4, atol=1e-5)


def test_what_is_changed_in_place_between_stays() -> None:
    """As timm's ResNets add their shortcuts; only that activation stays."""

    class Shortcut(Net):
        def forward(self, x: Tensor) -> Tensor:
            before = self.first(x)
            before += x.mean()
            out: Tensor = self.act2(self.second(self.act1(before)))
            return out

    torch.manual_seed(0)
    module = Shortcut(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    ours, features = packed(module, "act2")
    assert count(ours) == 2 and isinstance(ours.act1, nn.ReLU) and isinstance(ours.act2, nn.Identity)
    torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)


def test_layers_that_do_more_or_run_twice_stay() -> None:
    class Double(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    for first in (Double(3, 8, 3), nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 8, 3, padding="same")):
        module = Net(first, nn.ReLU())
        ours, features = packed(module, "act2")
        assert count(ours) == 1
        torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    ours, _ = packed(Net(nn.Sequential(nn.Conv2d(3, 8, 1), shared, shared), nn.ReLU()), "act2")
    assert count(ours) == 2


class Tokens(nn.Module):
    """A convolution, and linear layers over positions as transformers have them; `use` may look at the second one's weights."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.patch, self.use = nn.Conv2d(3, 8, 4, stride=4), use
        self.fc1, self.act, self.fc2, self.out = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        out: Tensor = self.out(tokens + self.use(self.fc2, self.act(self.fc1(tokens))))
        return out


def test_linear_layers() -> None:
    torch.manual_seed(0)
    module = Tokens()
    ours, features = packed(module, "out")
    assert count(ours) == 3 and isinstance(ours.act, nn.Identity)
    torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)
    ours, features = packed(module, "fc1", "out")
    assert count(ours) == 3 and isinstance(ours.act, nn.GELU)
    torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_whose_weights_are_used_by_a_function_leaves_all_of_them() -> None:
    torch.manual_seed(0)
    module = Tokens(lambda layer, x: layer(x) + nn.functional.linear(x, layer.weight))
    ours, features = packed(module, "out")
    assert count(ours) == 1 and isinstance(ours.fc1, nn.Linear)
    torch.testing.assert_close(features(ours), features(module), rtol=1e-4, atol=1e-5)


def test_the_copy_for_another_thread_shares_the_weights() -> None:
    ours, features = packed(Net(nn.Conv2d(3, 8, 3), nn.ReLU()), "act2")
    again = share_copy(ours)
    assert again.first is not ours.first
    assert again.first.packed is ours.first.packed
    torch.testing.assert_close(features(again), features(ours), rtol=0, atol=0)


def test_each_layer_computes_in_the_type_of_its_weights() -> None:
    torch.manual_seed(0)
    module = Net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    images_BCHW = torch.randn(2, 3, 16, 13).to(memory_format=torch.channels_last)
    expected = module.eval()(images_BCHW)
    with torch.inference_mode():
        found = find_packable(module, ["act2"], lambda one: {"act2": one(images_BCHW)})
        module.second.to(torch.bfloat16)
        pack(module, found)
    assert module.first.packed.dtype == torch.float32
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with torch.inference_mode():
            ours = module(images_BCHW)
        assert ours.dtype == module.second.packed.dtype == torch.bfloat16
        assert 0 < (ours - expected).norm() < 0.01 * expected.norm()
    else:
        assert isinstance(module.second, nn.Conv2d)
