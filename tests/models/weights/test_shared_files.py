"""Weights as people share them: wrapped, prefixed, with another head or none, beside what trainers keep."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from tests.models import oracles
from tlray.errors import ConfigError, WeightsError
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import Backbone, load_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_recipe_file
from tlray.recipe import RecipeFile, golden_images

SIDE = 64
State = dict[str, torch.Tensor]


def network(**arguments: object) -> nn.Module:
    """A small ResNet whose batch norms have seen images, or they could be left out without a difference."""
    torch.manual_seed(3)
    module = timm.create_model("test_resnet", **arguments)
    module.train()
    with torch.no_grad():
        module(torch.randn(4, 3, SIDE, SIDE))
    return module.eval()


@pytest.fixture(scope="module")
def state() -> State:
    return network().state_dict()


@pytest.fixture(scope="module")
def expected(state: State) -> np.ndarray:
    """What plain timm puts out before its classifier."""
    module = timm.create_model("test_resnet", num_classes=0)
    module.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    inputs_BCHW = torch.from_numpy(golden_images(SIDE, SIDE)).permute(0, 3, 1, 2) / 255
    mean_C, std_C = (torch.tensor(module.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        return module.eval()((inputs_BCHW - mean_C) / std_C).numpy()


def resolve(weights: object, backbone: str = "timm:test_resnet", **recipe: object) -> Backbone:
    return oracles.resolve(backbone, weights, SIDE, **recipe)


def check(backbone: Backbone, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """It embeds as it should, and a worker loads the same from its recipe."""
    oracles.check(backbone, lambda _inputs_BCHW: torch.from_numpy(expected), tolerance)


def prefixed(prefix: str) -> Callable[[State], object]:
    return lambda state: {"state_dict": {prefix + key: value for key, value in state.items()}}


WRAPPINGS = {
    "plain": lambda state: dict(state),
    "model": lambda state: {"model": dict(state), "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "model_state": lambda state: {"model_state": dict(state)},
    "net": lambda state: {"net": dict(state), "acc": 0.9},
    "network": lambda state: {"network": dict(state)},
    "params": lambda state: {"params": dict(state)},
    "ema": lambda state: {"ema": dict(state)},
    "deep": lambda state: {"checkpoint": {"weights": {"model": dict(state)}}},
    "module.": prefixed("module."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()} | {"loss.weight": torch.ones(5)}},
    "backbone.": prefixed("backbone."),
    "encoder.": prefixed("encoder."),
    "net.": prefixed("net."),
    "own.name.for.it.": prefixed("own.name.for.it."),
    "averaged": lambda state: {"n_averaged": torch.tensor(7)} | {f"module.{key}": value for key, value in state.items()},
    "without counts": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    "with a projector": lambda state: dict(state) | {"projector.0.weight": torch.ones(4, 96), "queue": torch.ones(8, 4)},
    "twice the same": lambda state: {"model": dict(state), "model_ema": dict(state)},
    "arguments": lambda state: {"state_dict": dict(state), "args": argparse.Namespace(out=Path("x")), "best": np.float64(0.7)},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_and_prefixed(wrapping: str, state: State, expected: np.ndarray, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "w.pth")
    check(resolve(tmp_path / "w.pth"), expected)


def test_heads_of_other_sizes_and_none(state: State, expected: np.ndarray, tmp_path: Path) -> None:
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    hashes = set()
    for name, head in {
        "ten": {"fc.weight": torch.ones(10, 96), "fc.bias": torch.ones(10)},
        "none": {},
        "mlp": {"fc.0.weight": torch.ones(64, 96), "fc.2.weight": torch.ones(10, 64)},
        "other name": {"head.weight": torch.ones(10, 96)},
    }.items():
        torch.save(body | head, tmp_path / f"{name}.pth")
        backbone = resolve(tmp_path / f"{name}.pth")
        check(backbone, expected)
        assert backbone.recipe.taps == ("global_pool.pool",)
        hashes.add(backbone.recipe.weights_sha256)
    assert len(hashes) == 2  # with a classifier of ten classes, and without one


def test_a_classifier_of_ten_classes_gives_its_scores_and_a_missing_one_none(state: State, tmp_path: Path) -> None:
    fine_tuned = network(num_classes=10)
    torch.save(fine_tuned.state_dict(), tmp_path / "ten.pth")
    backbone = resolve(tmp_path / "ten.pth")
    own = own_classifier(backbone, keep_embeddings=False)
    assert own.classes == tuple(str(index) for index in range(10))
    images_BHWC = golden_images(SIDE, SIDE)
    with torch.no_grad():
        scores_BK = fine_tuned(to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)).numpy()
    found = Encoder(own.backbone, device="cpu").encode(images_BHWC)[own.column]
    np.testing.assert_allclose(found, scores_BK, rtol=1e-3, atol=1e-4)
    torch.save({key: value for key, value in state.items() if not key.startswith("fc.")}, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match=r"have no classifier for timm:test_resnet \(fc\.weight"):
        own_classifier(resolve(tmp_path / "none.pth"), keep_embeddings=False)
    with pytest.raises(WeightsError, match=r"2 missing: fc\.weight, fc\.bias"):
        resolve(tmp_path / "none.pth", taps=("fc",))


def test_half_files_serve_the_taps_that_they_fill(state: State, tmp_path: Path) -> None:
    half = {key: value for key, value in state.items() if not key.startswith(("layer4.", "fc."))}
    torch.save(half, tmp_path / "half.pth")
    assert resolve(tmp_path / "half.pth", taps=("layer3",)).shapes == {"embedding": (192,)}
    with pytest.raises(WeightsError, match=r"missing: layer4\.0\.conv1\.weight"):
        resolve(tmp_path / "half.pth")


def test_sets_that_differ_are_asked_for(state: State, expected: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    other = {key: value * 2 if value.is_floating_point() else value for key, value in state.items()}
    torch.save(
        {"model": other, "model_ema": dict(state), "teacher": {f"backbone.{k}": v + 0 * v for k, v in other.items()}}, path
    )
    with pytest.raises(
        WeightsError, match=f"2 sets of weights that fit: model, model_ema; choose one, as {path}#model or"
    ) as _:
        resolve(path)
    check(resolve(f"{path}#model_ema"), expected)
    assert resolve(f"{path}#teacher").recipe.weights_sha256 == resolve(f"{path}#model").recipe.weights_sha256
    with pytest.raises(WeightsError, match="no weights at ema; it has tensors at: model, model_ema, teacher"):
        resolve(f"{path}#ema")
    torch.save(dict(state) | {"ema": other}, path)
    with pytest.raises(WeightsError, match="2 sets of weights that fit: top, ema"):
        resolve(path)
    check(resolve(f"{path}#top"), expected)


def test_tensors_of_another_network_are_not_left_out(state: State, expected: np.ndarray, tmp_path: Path) -> None:
    """A squeeze-and-excitation network has all that a plain one has, and computes other numbers."""
    path = tmp_path / "w.pth"
    for extra in ("layer1.0.se.fc1.weight", "norm_pre.weight", "reg_token", "layer1.0.conv1.bias"):
        torch.save(dict(state) | {extra: torch.ones(64)}, path)
        with pytest.raises(WeightsError, match=f"1 unexpected: {extra}.*may be of another network.*#partial"):
            resolve(path)
        check(resolve(f"{path}#partial"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    safetensors.torch.save_file(cast, tmp_path / "w.safetensors")
    backbone = resolve(tmp_path / "w.safetensors")
    assert all(torch.equal(backbone.module.state_dict()[key], value.to(state[key].dtype)) for key, value in cast.items())
    assert any(f"stored as {str(dtype).removeprefix('torch.')}" in note for note in backbone.notes)


def test_quantised_numbers_are_not_taken_for_weights(state: State, tmp_path: Path) -> None:
    torch.save({key: (value * 10).to(torch.int8) for key, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"of another shape: conv1\.0\.weight \(16, 3, 3, 3\) int8 for \(16, 3, 3, 3\)"):
        resolve(tmp_path / "w.pth")


def test_what_was_done_is_said_once_and_kept(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "w.pth"
    body = {f"module.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    torch.save({"state_dict_ema": body | {"module.head.weight": torch.ones(3)}, "args": argparse.Namespace()}, path)
    backbone = resolve(path)
    done, assumed = backbone.notes
    assert done == (
        f"{path}: taken from state_dict_ema.module; left out 1 tensors that the backbone has no place for (head.weight); "
        "left without values what it does not fill, and embeddings do not need (fc.weight, fc.bias); "
        "left out Python objects, whose code is not run (argparse.Namespace)"
    )
    assert assumed.startswith(f"{path} does not say how its images are to be prepared; assumed: as for timm:test_resnet")
    assert [record.message for record in caplog.records] == [done, assumed]
    caplog.clear()
    load_backbone(backbone.recipe, Path)
    assert not caplog.records
    file = make_recipe_file(backbone)
    assert file.notes == backbone.notes and file.recipe_id == backbone.recipe.recipe_id
    assert RecipeFile.from_json(file.to_json(), "recipe.json") == file


def test_notes_do_not_change_what_a_table_belongs_to(state: State, tmp_path: Path) -> None:
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(body, tmp_path / "a.pth")
    torch.save({"model": {f"module.{key}": value for key, value in body.items()}, "epoch": 3}, tmp_path / "b.pth")
    assert resolve(tmp_path / "a.pth").recipe.recipe_id == resolve(tmp_path / "b.pth").recipe.recipe_id
