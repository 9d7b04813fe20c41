"""From a request to the network of an ONNX file, with what the file and the user say of how images are prepared."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tlray.config.sections.presets import LEVELS, PRESETS
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.libraries.onnx.file import OnnxFile, read_file
from tlray.models.libraries.onnx.graph import Graph
from tlray.models.libraries.onnx.images import ImageInput, image_input
from tlray.models.libraries.onnx.network import OnnxNetwork
from tlray.models.libraries.onnx.sessions import Sessions
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Preprocessing

FILE = "file"
"""The model's name in recipes: which file it is, its hash says, and where it is, the weights."""

PREPROCESSING_KEY = "tlray.preprocessing"
CLASSES_KEY = "tlray.classes"
"""Metadata of a model, as `tlray export` and anybody may write them: a recipe's preprocessing, and a list of names."""

_DEFAULT = "default"
_GEOMETRY = ("resize", "fit", "interpolation")
_VALUES = ("channels", "scale", "mean", "std")


def load(request: Request, fetch: FetchFile) -> Pretrained:
    """The network of a file; see `tlray.models.libraries.onnx.library.Onnx.load`."""
    location = _location(request)
    file = read_file(location, fetch)
    said_in_file = _preprocessing_of(file)
    crop = request.crop if said_in_file is None or request.crop is not None else said_in_file.crop
    image = image_input(file.model.graph, crop, location)
    preprocessing = _prepared(file, image, said_in_file, request.said)
    graph = Graph(file, image)
    return Pretrained(
        backbone=f"onnx:{FILE}",
        weights=location,
        weights_sha256=file.sha256,
        module=OnnxNetwork(graph, Sessions(graph)).eval(),
        preprocessing=preprocessing,
        default_tap=graph.penultimate,
        classes=_classes_of(file),
        compute="fp32",
        fixed="an ONNX model computes and does not learn",
        packages=("onnxruntime",),
        notes=_notes(graph),
    )


def _location(request: Request) -> str:
    """Where the file is: named by the backbone or by the weights; a local path in full."""
    model, weights = request.model, request.weights
    if model == FILE and weights == _DEFAULT:
        raise BackboneError("backbone onnx:file: say which one: onnx:<path or URI of an ONNX file>")
    if model != FILE and weights != _DEFAULT:
        raise WeightsError(f"backbone onnx:{model} holds its weights: leave out weights {weights!r}")
    location = model if model != FILE else weights
    if location.startswith("random:"):
        raise WeightsError(f"weights {location!r}: an ONNX file has weights of its own; give its path or URI")
    is_local = "://" not in location and not location.startswith("package:")
    return str(Path(location).expanduser().absolute()) if is_local else location


def _preprocessing_of(file: OnnxFile) -> Preprocessing | None:
    """What the file's metadata say of how images are prepared."""
    text = file.metadata.get(PREPROCESSING_KEY)
    if text is None:
        return None
    try:
        return Preprocessing.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BackboneError(
            f"{file.where} has metadata {PREPROCESSING_KEY} that are no preprocessing of this version of tlray ({where}: "
            f"{first['msg']}); export it again"
        ) from error


def _prepared(file: OnnxFile, image: ImageInput, in_file: Preprocessing | None, said: frozenset[str]) -> Preprocessing:
    """How images are prepared: by the file, or by what is said, which has to be all of it."""
    if in_file is not None:  # of a model that takes levels the rest happens inside
        return in_file.model_copy(update={"crop": image.size, **(LEVELS if image.takes_levels else {})})
    demanded = _GEOMETRY if image.takes_levels else _GEOMETRY + _VALUES
    missing = [key for key in demanded if key not in said]
    if missing:
        raise ConfigError(_demand(file.where, missing))
    values = LEVELS if image.takes_levels else PRESETS["keras:torch"]  # where they are said, these count
    return Preprocessing.model_validate({"resize": None, "crop": image.size, "interpolation": "bilinear", **values})


def _demand(where: str, missing: Sequence[str]) -> str:
    resize = "--recipe.preprocessing.resize 256 --recipe.preprocessing.fit cover --recipe.preprocessing.interpolation bilinear"
    preset = "" if not set(missing) & set(_VALUES) else " --recipe.preprocessing.preset keras:torch"
    presets = f" ({', '.join(_VALUES)}: all four by a preset, {', '.join(PRESETS)})" if preset else ""
    return (
        f"{where} does not say how its images are prepared, and that is not guessed: give recipe.preprocessing "
        f"{', '.join(missing)}{presets}, for example {resize}{preset}"
    )


def _classes_of(file: OnnxFile) -> Sequence[str] | None:
    """Names of the classes by the file's metadata."""
    try:
        names = json.loads(file.metadata.get(CLASSES_KEY, "null"))
    except ValueError:
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _notes(graph: Graph) -> list[str]:
    if not graph.calibrates_on_batches or graph.image.batch == 1:
        return []
    return [
        f"{graph.file.where} chooses the scales of its numbers by all images of a batch (DynamicQuantizeLinear), so that they "
        "would change each other's: images are computed one by one"
    ]
