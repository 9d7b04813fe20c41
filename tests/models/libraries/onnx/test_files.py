"""Where ONNX files are and what they say of themselves: places, hashes, tensors in other files, levels in place of numbers."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.models.libraries.onnx.networks import PREPROCESSING, SIDE, by_torch, network, save
from tests.models.libraries.onnx.test_formats import FP32, encode, images, inputs, near, resolve
from tlray.config import RecipeConfig
from tlray.errors import WeightsError
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.open import open_store
from tlray.models.backbones.images import load_backbone, resolve_backbone


def test_the_hash_is_the_files_whatever_it_is_called(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    recipe = resolve(path).recipe
    assert recipe.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    moved = path.rename(tmp_path / "y.onnx")
    again = resolve(moved).recipe
    assert again.recipe_id == recipe.recipe_id and again.weights == str(moved)
    assert load_backbone(recipe.model_copy(update={"weights": str(moved)}), Path).recipe.taps == recipe.taps


def test_a_relative_path_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "x.onnx")
    monkeypatch.chdir(tmp_path)
    assert resolve("x.onnx").recipe.weights == str(tmp_path / "x.onnx")


def test_tensors_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    path = tmp_path / "net" / "x.onnx"
    options = {"save_as_external_data": True, "location": "x.data", "size_threshold": 0}
    onnx.save(network(), path, **options)
    recipe = resolve(path).recipe
    near(encode(resolve(path), images())["embedding"], by_torch(inputs(resolve(path), images()))["flat"])
    parts = [hashlib.sha256(each.read_bytes()).hexdigest() for each in (path, tmp_path / "net" / "x.data")]
    assert recipe.weights_sha256 == hashlib.sha256(f"{parts[0]}  \n{parts[1]}  x.data\n".encode()).hexdigest()
    onnx.save(network(seed=1), tmp_path / "net" / "y.onnx", **options)  # the same graph over other numbers
    assert resolve(path).recipe.weights_sha256 != recipe.weights_sha256


def test_tensors_in_another_file_that_is_fetched_elsewhere(tmp_path: Path) -> None:
    """As from S3: each file comes to a folder of its own."""
    onnx.save(network(), tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0)

    def fetch(address: str) -> Path:
        name = address.removeprefix("s3://bucket/")
        copy = tmp_path / "cache" / name.replace(".", "_") / name
        if (tmp_path / name).is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((tmp_path / name).read_bytes())
        return copy

    backbone = resolve_backbone(RecipeConfig(backbone="onnx:s3://bucket/x.onnx"), fetch)
    assert backbone.recipe.weights == "s3://bucket/x.onnx"
    near(encode(backbone, images())["embedding"], by_torch(inputs(backbone, images()))["flat"])


def levels_network(path: Path, metadata: dict[str, str]) -> Path:
    """A network that takes uint8 NHWC and normalises inside, as `tlray export --network` writes it."""
    model = network(metadata=metadata)
    graph = model.graph
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("levels", TensorProto.UINT8, ["n", SIDE, SIDE, 3]))
    values = {name: np.array(PREPROCESSING[name], np.float32).reshape(3, 1, 1) * 255 for name in ("mean", "std")}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    before = [
        helper.make_node("Cast", ["levels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["images"]),
    ]
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return path


def test_levels_of_a_network_that_normalises_itself(tmp_path: Path) -> None:
    path = levels_network(tmp_path / "x.onnx", {"tlray.preprocessing": json.dumps(PREPROCESSING)})
    backbone = resolve(path)
    preprocessing = backbone.recipe.preprocessing
    assert (preprocessing.scale, preprocessing.mean, preprocessing.std) == ((0, 255), (0, 0, 0), (1, 1, 1))
    assert preprocessing.resize == (40, 40)
    mean, std = (torch.tensor(PREPROCESSING[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    inputs_BCHW = (torch.from_numpy(images()).permute(0, 3, 1, 2) / 255 - mean) / std
    near(encode(backbone, images())["embedding"], by_torch(inputs_BCHW)["flat"])


@pytest.mark.s3
def test_files_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    """The model and the file that its tensors lie in, through the store that extraction uses."""
    onnx.save(network(), tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0)
    for name in ("x.onnx", "x.data"):
        uri = f"{s3_bucket}/models/{name}"
        open_store(uri).write(uri, (tmp_path / name).read_bytes())
    config = RecipeConfig.model_validate({"backbone": f"onnx:{s3_bucket}/models/x.onnx", "precision": FP32})
    backbone = resolve_backbone(config, local_copy)
    assert backbone.recipe.weights == f"{s3_bucket}/models/x.onnx"
    near(encode(backbone, images())["embedding"], by_torch(inputs(backbone, images()))["flat"])
    missing = RecipeConfig(backbone=f"onnx:{s3_bucket}/models/y.onnx")
    with pytest.raises(WeightsError, match="there is no file s3://"):
        resolve_backbone(missing, local_copy)
