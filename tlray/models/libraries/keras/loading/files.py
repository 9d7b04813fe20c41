"""Files of Keras: models (`.keras`, `.h5`) and weights; what of them is read, and what is refused before Keras sees it."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tlray.errors import BackboneError, WeightsError, first_line
from tlray.models.libraries.keras.runtime import Keras
from tlray.models.weights.fetched import find_file
from tlray.models.weights.files import package_file
from tlray.models.weights.foreign import advice
from tlray.models.weights.spec import FetchFile, WeightsSpec

SUFFIXES = (".keras", ".h5", ".hdf5")
"""Endings of files that Keras writes: whole models, or weights alone (always so for `.weights.h5`)."""

_CODE = {
    "Lambda": "Python code inside the file",
    "__lambda__": "Python code inside the file",
    "TFSMLayer": "a SavedModel of TensorFlow",
    "TorchModuleWrapper": "a module of torch, pickled",
    "JaxLayer": "code of JAX",
    "FlaxLayer": "code of JAX",
}
"""Classes whose objects would run what the file holds, by what that is."""


def is_keras_file(address: str) -> bool:
    """Whether the name of a file is one that Keras gives."""
    return address.lower().endswith(SUFFIXES)


def fetch_file(spec: WeightsSpec, fetch: FetchFile) -> Path:
    """A file of Keras' on this machine, under its own suffix.

    Raises:
        WeightsError: there is none, or it is of a framework that is read through ONNX alone.
    """
    if spec.kind == "package":
        return package_file(spec.location, SUFFIXES)
    location = spec.location
    if (foreign := advice(location, fetch)) is not None:
        raise WeightsError(f"{location}: {foreign}")
    path = find_file(location, fetch)
    if path is None:
        raise WeightsError(f"there is no file {location}; expected a model or weights of Keras ({', '.join(SUFFIXES)})")
    if not is_keras_file(location):
        raise WeightsError(f"{location} has not the name of a file of Keras; expected one that ends in {', '.join(SUFFIXES)}")
    return path


def model_config(path: Path, where: str) -> Mapping[str, Any] | None:
    """The document that says of what layers a model is made.

    Args:
        path: of a file of Keras.
        where: what the user wrote, for messages.

    Returns:
        None for a file of weights alone.

    Raises:
        WeightsError: it is damaged, or no file of Keras.
    """
    document: object
    try:
        if path.name.lower().endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                document = json.loads(archive.read("config.json"))
        else:
            with import_module("h5py").File(path) as file:
                text = file.attrs.get("model_config")
            document = None if text is None else json.loads(text)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{where} could not be read as a file of Keras: {first_line(error)}; check that it is whole, and written by "
            "model.save('model.keras')"
        ) from error
    if document is not None and not isinstance(document, dict):
        raise WeightsError(f"{where} says of what layers it is made as a {type(document).__name__}, expected an object")
    return document


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not made of Keras' own layers: nothing of it is imported or run.

    Raises:
        BackboneError: names the layer, and how the model is exported by who trusts it.
    """
    for one in _objects(config):
        kind, module = str(one["class_name"]), one.get("module")
        inner = one.get("config")
        name = inner.get("name", kind) if isinstance(inner, Mapping) else kind
        if kind in _CODE:
            what = f"is a {kind}, {_CODE[kind]}, which is not run"
        elif _is_of_others(one, module):
            what = f"is of {one.get('registered_name') or f'{module}.{kind}'}, which is not Keras' own"
        else:
            continue
        raise BackboneError(
            f"{where}: layer {name!r} {what}; where you trust it, export the model as ONNX, in Python with Keras: "
            f"{export_command(where)}, then give --backbone onnx:model.onnx"
        )


def export_command(where: str) -> str:
    """Python that makes an ONNX file of a model file."""
    return f"keras.saving.load_model({where!r}, safe_mode=False).export('model.onnx', format='onnx')"


def _objects(document: object) -> Iterator[Mapping[str, Any]]:
    """Everything in a document that stands for an object of a class."""
    if isinstance(document, Mapping):
        if "class_name" in document:
            yield document
        document = list(document.values())
    if isinstance(document, list):
        for one in document:
            yield from _objects(one)


def _is_of_others(one: Mapping[str, Any], module: object) -> bool:
    """Whether an object is of a class that is not Keras'; older files name no modules, and Keras finds its own alone there."""
    if "module" not in one:
        return False
    if module is None:
        return ">" in str(one.get("registered_name"))
    package = str(module).partition(".")[0]
    return package not in ("keras", "builtins")


def read_model(keras: Keras, path: Path) -> Any:
    """The model of a file, which `check_config` has let through; without its optimizer.

    Raises:
        ValueError, TypeError, OSError: as Keras raises them.
    """
    return keras.saving.load_model(str(path), compile=False, safe_mode=True)
