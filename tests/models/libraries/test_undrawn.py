"""Networks that are built without drawing random numbers: what is loaded into them is all that they compute with."""

import threading
from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.models.oracles import resolve
from tlray.errors import WeightsError
from tlray.models.libraries.timm import Timm
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


@pytest.mark.parametrize("window", [(-2.0, 2.0), (0.9, 1.0)])  # torch draws again and again what is outside
def test_narrow_distributions_end(window: tuple[float, float]) -> None:
    with Undrawn():
        layer = nn.Linear(3, 4)
        nn.init.trunc_normal_(layer.weight, 0.0, 1.0, *window)
    assert layer.weight.isnan().all()


def test_what_is_not_drawn_is_changed_as_ever() -> None:
    with Undrawn():
        layer = nn.Linear(3, 4)
        with torch.no_grad():
            layer.weight.fill_(0.5).erfinv_()
    assert torch.equal(layer.weight, torch.full((4, 3), 0.5).erfinv())


def test_a_constructor_that_fails_leaves_nothing_behind() -> None:
    within = Undrawn()
    for _ in range(2):
        with pytest.raises(RuntimeError), within:
            nn.Linear(3, -4)
        assert not nn.Linear(3, 4).weight.isnan().any()


def test_published_weights_that_lack_a_tensor_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    state = built("test_resnet").state_dict()
    del state["layer4.0.conv1.weight"]

    def download(_: Timm, model: str, entry: str) -> nn.Module:
        lacking = timm.create_model(model)
        lacking.load_state_dict(state, strict=False)
        return lacking

    monkeypatch.setattr(Timm, "download", download)
    with pytest.raises(WeightsError, match=r"timm:test_resnet\.r160_in1k has no values for layer4\.0\.conv1\.weight"):
        resolve("timm:test_resnet", "default")
    early = resolve("timm:test_resnet", "default", taps=("layer1",))
    assert early.unfilled == ("layer4.0.conv1.weight",)
