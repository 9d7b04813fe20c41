"""Loading a model of Keras from its file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tlray.errors import BackboneError, ConfigError, WeightsError, first_line
from tlray.models.libraries.keras.applications import preparation
from tlray.models.libraries.keras.loading.files import check_config, export_command, fetch_file, model_config, read_model
from tlray.models.libraries.keras.loading.pretrained import as_pretrained, probe_of
from tlray.models.libraries.keras.runtime import Keras, KerasFailure, import_keras, run_apart
from tlray.models.libraries.keras.translation.ends import function_of, scaling_layers
from tlray.models.libraries.keras.translation.translate import Translation, translate
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.weights.digest import hash_tensors
from tlray.models.weights.spec import FetchFile, WeightsSpec
from tlray.recipe import Preprocessing

FILE = "file"
"""What recipes call the network of any file, `keras:file`, whose weights say where it is: its name and place are no part of the
fingerprint, what it holds is."""

_FIXED = (
    "its layers are those of a file, without which the trained model would be nothing: train it in Keras, or start from an "
    "application (as keras:ResNet50)"
)


def load_model_file(request: Request, fetch: FetchFile) -> Pretrained:
    """The network of a file, with the weights that it holds.

    Args:
        request: `keras:<path>` or `keras:package:<name>/<file>`; or `keras:file` with that as its weights.
        fetch: brings the URI or path of a file to a local path.

    Raises:
        BackboneError: it has layers that are not Keras' own, or takes no images.
        WeightsError: it is missing, damaged, or holds weights alone.
        ConfigError: it does not say how images are prepared, or of what size they are.
    """
    spec = _spec(request)
    address = spec.text
    path = fetch_file(spec, fetch)
    keras = import_keras(f"backbone keras:{address}")
    config = model_config(path, address)
    if config is None:
        raise WeightsError(
            f"{address} holds weights alone, not what layers they are of: name the network they are for, as "
            f"--backbone keras:VGG16 --weights {address}"
        )
    check_config(config, address)

    def work() -> tuple[Translation, Preprocessing, Sequence[str]]:
        model = read_model(keras, path)
        function = function_of(model)
        _compute_at_fp32(keras, model)
        height, width = _size(function if function is not None else model, request, address)
        notes = _prepared(function, request, address)
        preprocessing = preparation("raw", height, width)
        return translate(keras, model, probe_of(preprocessing)), preprocessing, notes

    try:
        translation, preprocessing, notes = run_apart(keras, work)
    except KerasFailure as failure:
        raise WeightsError(
            f"{address}: Keras {keras.__version__} cannot load it: {first_line(failure)}; save it anew with this version of "
            f"Keras, or export it as ONNX where you trust it: {export_command(address)}"
        ) from failure
    return as_pretrained(
        translation,
        backbone=f"keras:{FILE}",
        weights=address,
        weights_sha256=_hash(config, translation),
        preprocessing=preprocessing,
        notes=notes,
        fixed=_FIXED,
    )


def _spec(request: Request) -> WeightsSpec:
    """Where the model's file is."""
    if request.model != FILE and request.weights not in ("default", request.model):
        raise WeightsError(
            f"backbone keras:{request.model} is a file that has its own weights; leave recipe.weights out, or name the "
            "application that the weights are for"
        )
    spec = WeightsSpec.parse(request.weights if request.model == FILE else request.model)
    if spec.kind not in ("file", "package") or spec.options:
        raise WeightsError(
            f"backbone keras:{request.model} with weights {request.weights!r}: expected the path or URI of a model file, "
            "or package:<name>/<file>"
        )
    return spec


def _hash(config: Mapping[str, Any], translation: Translation) -> str:
    """Over the tensors, and over what the layers are: others of the same shapes compute other numbers."""
    layers = json.dumps([config.get("class_name"), config.get("config")], sort_keys=True).encode()
    text = torch.frombuffer(bytearray(layers), dtype=torch.uint8)
    return hash_tensors([("config.json", text), *translation.module.state_dict().items()])


def _compute_at_fp32(keras: Keras, model: Any) -> None:
    """Compute at float32 what was saved to be computed at 16 bits: the recipe says at what precision a table is made."""
    for layer in model._flatten_layers():
        if layer.compute_dtype in ("float16", "bfloat16", "float64") and layer.dtype_policy.quantization_mode is None:
            layer.dtype_policy = keras.DTypePolicy("float32")


def _size(model: Any, request: Request, address: str) -> tuple[int, int]:
    """Height and width of the images that it takes."""
    inputs = model.inputs or []
    shapes = [tuple(tensor.shape[1:]) for tensor in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] != 3:
        raise BackboneError(
            f"{address} takes {_listed(shapes) or 'unknown'} inputs, expected one of (height, width, 3): RGB images"
        )
    size = shapes[0][:2]
    crop = request.crop
    if crop is None and None in size:
        raise ConfigError(
            f"{address} takes images of any size ({_listed(shapes)}); say which, as recipe.preprocessing.crop 224"
        )
    if crop is not None and any(side not in (None, wish) for side, wish in zip(size, crop, strict=True)):
        raise ConfigError(f"{address} takes images of {size[0]}x{size[1]}, not of crop {crop[0]}x{crop[1]}; leave crop out")
    height, width = crop or size
    return height, width


def _listed(shapes: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join(f"({', '.join('any' if side is None else str(side) for side in shape)})" for shape in shapes)


def _prepared(function: Any, request: Request, address: str) -> list[str]:
    """What is taken to be so of the values that it takes; nothing where they are said."""
    if {"mean", "std", "scale"} <= request.said or function is None:
        return []
    if layers := scaling_layers(function):
        return [f"{address} scales levels by itself ({', '.join(layers)}), so images are given to it as 0..255"]
    raise ConfigError(
        f"{address} does not say how its images are prepared: give recipe.preprocessing.preset (keras:caffe, keras:tf or "
        "keras:torch), or mean, std and scale (what 0..255 becomes before them, as [0, 1]), and channels where they are not rgb"
    )
