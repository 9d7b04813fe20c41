"""Where weights come from, how strictly they are loaded, and their hash."""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from tlray.config import RecipeConfig
from tlray.errors import StorageError, WeightsError
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone
from tlray.models.weights.candidates import Candidate
from tlray.models.weights.digest import hash_weights
from tlray.models.weights.fit import Fit
from tlray.models.weights.spec import WeightsSpec

SMALL = "timm:test_resnet"


def resolve(weights: str, backbone: str = SMALL, sha256: str | None = None) -> Backbone:
    return resolve_backbone(RecipeConfig(backbone=backbone, weights=weights, weights_sha256=sha256), Path)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return resolve("random:3").module.state_dict()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("default", WeightsSpec("library", "default")),
        ("IMAGENET1K_V2", WeightsSpec("library", "IMAGENET1K_V2")),
        ("ResNet50_Weights.IMAGENET1K_V2", WeightsSpec("library", "ResNet50_Weights.IMAGENET1K_V2")),
        ("timm:resnet50.a1_in1k", WeightsSpec("library", "timm:resnet50.a1_in1k")),
        ("random:17", WeightsSpec("random", "17")),
        ("s3://bucket/w", WeightsSpec("file", "s3://bucket/w")),
        ("w.safetensors#order", WeightsSpec("file", "w.safetensors", ("order",))),
        ("./folder#model_ema,order", WeightsSpec("file", "./folder", ("model_ema", "order"))),
        ("a#b/w.pth", WeightsSpec("file", "a#b/w.pth")),
        ("model.ckpt", WeightsSpec("file", "model.ckpt")),
        ("package:some_weights/a/b.pth#order", WeightsSpec("package", "some_weights/a/b.pth", ("order",))),
    ],
)
def test_parses_each_form(text: str, spec: WeightsSpec) -> None:
    assert WeightsSpec.parse(text) == spec
    assert spec.text == text


@pytest.mark.parametrize("text", ["random:", "random:x", "random:-1", "w.pth#", "w.pth#order,", "default#order"])
def test_refuses_other_forms(text: str) -> None:
    with pytest.raises(WeightsError, match=r"expected|leave it out"):
        WeightsSpec.parse(text)


def test_random_weights_follow_their_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = resolve("random:0"), resolve("random:0"), resolve("random:1")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.recipe == again.recipe
    assert first.recipe.weights == "random:0"
    assert first.recipe.weights_sha256 != other.recipe.weights_sha256


def test_hash_is_that_of_the_tensors_whatever_the_format(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "fetched").write_bytes((tmp_path / "a.safetensors").read_bytes())
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "nested.pt")
    names = ("a.pth", "old.pth", "a.safetensors", "fetched", "nested.pt")
    backbones = [resolve(str(tmp_path / name)) for name in names]
    assert {backbone.recipe.weights_sha256 for backbone in backbones} == {resolve("random:3").recipe.weights_sha256}
    assert [backbone.recipe.weights for backbone in backbones] == [str(tmp_path / name) for name in names]
    for backbone in backbones:
        assert all(torch.equal(backbone.module.state_dict()[key], state[key]) for key in state)


def test_hash_sees_one_element_a_name_a_shape_and_no_layout() -> None:
    layer = nn.Conv2d(3, 4, 3)
    before = hash_weights(layer)
    assert hash_weights(layer.to(memory_format=torch.channels_last)) == before
    assert hash_weights(nn.Sequential(layer)) != before
    with torch.no_grad():
        layer.weight[1, 2, 0, 1] = torch.nextafter(layer.weight[1, 2, 0, 1], torch.tensor(9.0))
    assert hash_weights(layer) != before
    wide, tall = nn.Linear(2, 8, bias=False), nn.Linear(8, 2, bias=False)
    tall.weight.data = wide.weight.data.reshape(2, 8)
    assert hash_weights(wide) != hash_weights(tall)


def test_another_hash_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    backbone = resolve(str(path))
    good, wrong = backbone.recipe.weights_sha256, "0" * 64
    assert resolve(str(path), sha256=good).recipe == backbone.recipe
    with pytest.raises(WeightsError, match=f"{good}.*{wrong}"):
        resolve(str(path), sha256=wrong)
    assert load_backbone(backbone.recipe, Path).shapes == backbone.shapes
    key = next(key for key in state if key.endswith("weight"))
    safetensors.torch.save_file(state | {key: state[key] * 2}, path)
    with pytest.raises(WeightsError, match=good):
        load_backbone(backbone.recipe, Path)


def test_what_does_not_fit_is_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    first, *_ = state
    torch.save({key: value for key, value in state.items() if key != first} | {"stem.extra": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=f"1 missing: {first}; 1 unexpected: stem.extra") as raised:
        resolve(str(path))
    assert "#order" not in str(raised.value)
    torch.save(state | {first: torch.zeros(7)}, path)
    with pytest.raises(WeightsError, match=f"1 of another shape: {first} \\(7,\\) for"):
        resolve(str(path))
    torch.save({f"x{index}": value for index, value in enumerate(state.values())}, path)
    with pytest.raises(WeightsError, match=r"missing: .*, \.\.\.; .* unexpected: x0, x1, x2, x3, x4, \.\.\.\. .*#order"):
        resolve(str(path))


def test_order_matches_by_position_and_checks_every_shape(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    renamed = OrderedDict((f"x{index}", value) for index, value in enumerate(state.values()))
    torch.save(renamed, path)
    assert resolve(f"{path}#order").recipe.weights_sha256 == resolve("random:3").recipe.weights_sha256
    torch.save(renamed | {"x0": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match=r"tensor 0 is x0 \(2, 2\)"):
        resolve(f"{path}#order")
    renamed.popitem()
    torch.save(renamed, path)
    with pytest.raises(WeightsError, match=f"{len(state) - 1} tensors, the backbone {len(state)}"):
        resolve(f"{path}#order")


def test_old_files_without_batch_counts_and_modules_with_versions_load() -> None:
    norm = nn.BatchNorm2d(2)
    old = {key: value + 1 for key, value in norm.state_dict().items() if "num_batches" not in key}
    fit = Fit.of(Candidate("", old), old, norm, ())
    assert not fit.unfilled
    fit.load(norm)
    assert torch.equal(norm.running_var, torch.full((2,), 2.0))
    mnasnet = torchvision.models.mnasnet0_5(weights=None)
    without_versions = dict(mnasnet.state_dict())
    assert Fit.of(Candidate("", without_versions), without_versions, mnasnet, ()).load(mnasnet) == hash_weights(mnasnet)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return (Path.touch, (self.mark,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"weight": Malicious(mark)}, path)
    with pytest.raises(WeightsError, match="safetensors"):
        resolve(str(path))
    path.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    with pytest.raises(WeightsError, match="safetensors"):
        resolve(str(path))
    assert not mark.exists()


class Evaluated:
    """Pickled as a call of a function that everybody has."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> object:
        return (eval, (self.text,))


def test_code_beside_weights_is_not_run_either(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"state_dict": state, "args": Evaluated(f"open({str(mark)!r}, 'w')")}, path)
    allowed = set(torch.serialization.get_safe_globals())
    backbone = resolve(str(path))
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert backbone.recipe.weights_sha256 == resolve("random:3").recipe.weights_sha256
    assert any("builtins.eval" in note for note in backbone.notes)
    assert not mark.exists()


def test_files_that_are_no_weights(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content in (b"", b"hello", b"PK\x03\x04 cut", b"\x00" * 8 + b"{"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="safetensors"):
            resolve(str(path))
    safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="could not be read"):
        resolve(str(path))
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds a list, expected a state dict"):
        resolve(str(path))
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, path)
    with pytest.raises(WeightsError, match=r"a dict without tensors \(epoch, args\)"):
        resolve(str(path))
    for content, message in (
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as raised:
            resolve(str(path))
        assert "code" not in str(raised.value)
    with pytest.raises(WeightsError, match="no weights file"):
        resolve(str(tmp_path / "none.pth"))


def test_fetch_brings_the_file_and_its_errors_pass(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "copy")
    config = RecipeConfig(backbone=SMALL, weights="s3://bucket/w.safetensors")
    assert resolve_backbone(config, lambda uri: tmp_path / "copy").recipe.weights == "s3://bucket/w.safetensors"

    def broken(uri: str) -> Path:
        raise StorageError(f"{uri} is away")

    with pytest.raises(StorageError, match="s3://bucket/w"):
        resolve_backbone(config, broken)


def test_packages(state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_weights" / "data").mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(WeightsError, match="found 0"):
        resolve("package:some_weights")
    safetensors.torch.save_file(state, tmp_path / "some_weights" / "data" / "a.safetensors")
    one = resolve("package:some_weights").recipe
    assert one.weights == "package:some_weights"
    torch.save(state, tmp_path / "some_weights" / "b.pth")
    with pytest.raises(WeightsError, match=r"found 2 \(b.pth, data/a.safetensors\)"):
        resolve("package:some_weights")
    assert resolve("package:some_weights/b.pth").recipe.weights_sha256 == one.weights_sha256
    torch.save(state, tmp_path / "outside.pth")
    for name in ("none.pth", "../outside.pth"):
        with pytest.raises(WeightsError, match="has no file"):
            resolve(f"package:some_weights/{name}")
    with pytest.raises(WeightsError, match="pip install absent-weights"):
        resolve("package:absent_weights")
    assert "some_weights" not in sys.modules


def test_failed_downloads_say_from_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: object, **_keywords: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(WeightsError, match=r"SqueezeNet1_1_Weights.*https://download.pytorch.org/.*no route.*path"):
        resolve("default", "torchvision:squeezenet1_1")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(WeightsError, match=r"timm:test_resnet.r160_in1k .*timm/test_resnet.*no route.*path"):
        resolve("default")


def test_unknown_entries_are_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        resolve("IMAGENET1K_V9", "torchvision:resnet50")
    with pytest.raises(WeightsError, match="r160_in1k"):
        resolve("a1_in1k")
    with pytest.raises(WeightsError, match="contradicts"):
        resolve("a2_in1k", "timm:resnet50.a1_in1k")


def test_library_weights_are_named_in_full_and_load_again(
    state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_args, **_keywords: dict(state))
    for weights in ("default", "r160_in1k", "test_resnet.r160_in1k", "timm:test_resnet.r160_in1k"):
        backbone = resolve(weights)
        assert (backbone.recipe.backbone, backbone.recipe.weights) == (SMALL, "timm:test_resnet.r160_in1k")
        assert backbone.recipe.weights_sha256 == resolve("random:3").recipe.weights_sha256
    assert resolve("default", f"{SMALL}.r160_in1k").recipe == load_backbone(backbone.recipe, Path).recipe
    squeezenet = resolve("random:0", "torchvision:squeezenet1_1").module.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_keywords: squeezenet)
    recipe = resolve("DEFAULT", "torchvision:squeezenet1_1").recipe
    assert recipe.weights == "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert load_backbone(recipe, Path).recipe == recipe
