"""What is frozen: cuts against brute force, and bit-identical parameters and buffers after training."""

import hashlib
import re
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

from tlray.errors import BackboneError
from tlray.models.layers.freezing import Anatomy, examine


class Skipping(nn.Module):
    """A branch around `middle`, an unused layer, one that runs twice, a parameter outside of layers, norms, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.middle = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Linear(3, 3)
        self.late = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.shift = nn.Parameter(torch.ones(8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.stem(images_BCHW)
        x = self.act(x + self.middle(x))
        x = self.act(self.late(x))
        return self.head(self.norm(x.mean((2, 3)) + self.shift))


NETWORKS = {
    "skipping": (Skipping, "norm", "stem"),
    "resnet": (lambda: timm.create_model("test_resnet"), "global_pool.pool", "layer2"),
    "vit": (lambda: timm.create_model("test_vit"), "norm", "blocks.2"),
    "efficientnet": (
        lambda: timm.create_model("test_efficientnet", drop_path_rate=0.3, drop_rate=0.2),
        "conv_head",
        "blocks.1",
    ),
}


def images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def sha256(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in tensors.items())).hexdigest()


def anatomy_of(name: str) -> tuple[nn.Module, Anatomy]:
    torch.manual_seed(0)
    make, tap, _ = NETWORKS[name]
    module = make().eval()
    return module, examine(module, tap, images())


def is_cut(module: nn.Module, layer: str, tap: str) -> bool:
    """Whether what the tap gives has no way back to the images once the layer's output is detached."""
    seen: list[Tensor] = []
    module.requires_grad_(False)
    handles = [
        module.get_submodule(layer).register_forward_hook(lambda _layer, _inputs, output: output.detach()),
        module.get_submodule(tap).register_forward_hook(lambda _layer, _inputs, output: seen.append(output)),
    ]
    module(images().requires_grad_(True) * 1)
    for handle in handles:
        handle.remove()
    return not seen[-1].requires_grad


@pytest.mark.parametrize("name", ["skipping", "resnet", "vit"])
def test_cuts_are_those_that_brute_force_finds(name: str) -> None:
    module, anatomy = anatomy_of(name)
    once = [layer for layer in anatomy.layers[:-1] if not layer.endswith("act")]
    expected = {layer for layer in once if is_cut(module, layer, anatomy.tap)}
    assert set(anatomy.cuts) & set(once) == expected
    assert expected and set(once) - expected


def test_choosing_a_cut() -> None:
    _, anatomy = anatomy_of("skipping")
    assert list(anatomy.cuts) == ["stem.0", "stem.1", "stem.2", "stem.3", "stem", "late.0", "late.1", "late.2", "late", "norm"]
    chosen = {freeze: anatomy.choose_cut(freeze) for freeze in ("none", "all", "2", "4", "0.0", "0.35", "1.0", "stem")}
    assert chosen == {
        "none": None, "all": "norm", "2": "stem", "4": "late.0", "0.0": None, "0.35": "stem", "1.0": "norm", "stem": "stem"
    }  # fmt: skip
    with pytest.raises(BackboneError, match=r"cannot cut at 'middle'.*stem.0, stem.1.*late, norm"):
        anatomy.choose_cut("middle")
    for odd in ("-1", "-0.5", "1.5", "8", "nan", "inf", "1e1", "+2", "1_0"):
        with pytest.raises(BackboneError, match=rf"freeze {re.escape(odd)} is no .* all but the last layer with weights is 5"):
            anatomy.choose_cut(odd)
    assert anatomy.choose_cut("0") is None
    with pytest.raises(BackboneError, match=r"freeze 0.1 is less than one of 6 layers"):
        anatomy.choose_cut("0.1")
    with pytest.raises(
        BackboneError, match=r"freeze 1 freezes nothing: the network cannot be cut before stem.1, which freezes 2"
    ):
        replace(anatomy, cuts={name: used for name, used in anatomy.cuts.items() if name != "stem.0"}).choose_cut("1")
    with pytest.raises(BackboneError, match="no layer 'nowhere'"):
        examine(Skipping(), "nowhere", images())
    with pytest.raises(BackboneError, match="does not run"):
        examine(Skipping(), "unused", images())


def test_blocks_are_in_order_and_leave_nothing_out() -> None:
    for name in NETWORKS:
        _, anatomy = anatomy_of(name)
        parameters = [parameter for block in anatomy.blocks for parameter in block]
        assert sorted(parameters) == sorted(anatomy.used)
    _, anatomy = anatomy_of("skipping")
    assert not any("unused" in parameter or "head" in parameter for parameter in anatomy.used)
    assert "shift" in anatomy.blocks[0]
    assert any(parameter.startswith("norm.") for parameter in anatomy.blocks[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_parameters_and_buffers_stay_bit_identical(name: str) -> None:
    module, anatomy = anatomy_of(name)
    cut = anatomy.choose_cut(NETWORKS[name][2])
    frozen = anatomy.frozen_by(cut)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    outputs: list[Tensor] = []
    module.get_submodule(cut).register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.detach().clone()))
    module.train()
    frozen.apply(module, training=True)
    optimizer = torch.optim.AdamW([one for one in module.parameters() if one.requires_grad], lr=0.01)
    for _ in range(2):
        module(images(2)).square().mean().backward()
        optimizer.step()
    after = module.state_dict()
    moved = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    prefix = {key: tensor for key, tensor in before.items() if key not in moved}
    assert sha256(prefix) == sha256({key: after[key] for key in prefix})
    assert frozen.trained - {"head.bias"} <= moved | {key for key in frozen.trained if not before[key].any()}
    done = set(anatomy.layers[: anatomy.layers.index(cut) + 1])
    assert not any(key.rpartition(".")[0] in done for key in moved)
    assert any("running_mean" in key for key in moved) == (name != "vit")  # those that are trained do follow their batches
    assert torch.equal(outputs[0], outputs[1])  # no dropout, no batch statistics before the cut
