"""Encoders at int8: their documents, made once a machine from what the table keeps, and run by onnxruntime on CPUs."""

import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path

import torch

from tlray.config.commands.extraction import Engine
from tlray.errors import ConfigError
from tlray.extras import require_int8
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines.node_files import cache_folder, only_one, read_whole, write_whole
from tlray.models.process.device import choose_device
from tlray.recipe import BaseRecipe, Quantization

FORMAT = 1
"""Of the documents that are kept; another one where they are made in another way."""

_CPU = torch.device("cpu")
_log = logging.getLogger(__name__)


def check_place(recipe: BaseRecipe, *, engine: Engine = "auto", device: str = "auto") -> None:
    """Refuse engines and devices that cannot compute a recipe at int8; other recipes pass.

    Raises:
        ConfigError: another engine than onnxruntime is asked for, or another device than the CPU; or the extra is missing.
    """
    if recipe.precision.compute != "int8":
        return
    require_int8()
    if engine not in ("auto", "onnxruntime"):
        raise ConfigError(f"recipe.precision.compute int8 is computed by onnxruntime, not by {engine}; leave engine out")
    if device != "auto" and choose_device(device) != _CPU:
        raise ConfigError(
            f"recipe.precision.compute int8 is computed on CPUs, not on {device}; use device cpu, or a recipe at bf16 for a GPU"
        )


def open_int8_encoder(
    backbone: Backbone,
    quantization: Quantization | None,
    exact_below: int,
    *,
    device: str = "auto",
    lanes: int | None = None,
    folder: Path | None = None,
) -> Encoder:
    """An encoder at int8, whose images pass one by one.

    Args:
        backbone: of a recipe at int8.
        quantization: the table's; None calibrates now.
        exact_below: the table's (`RecipeFile.exact_below`); means nothing where there is no quantization.
        device: `auto` or the CPU.
        lanes: see `Encoder`.
        folder: for what documents are kept in; default in the user's cache.

    Raises:
        ConfigError: see `check_place`; or the quantization is of another network.
        BackboneError: the network cannot be computed at int8.
    """
    check_place(backbone.recipe, device=device)
    # Extras, and slow to import.
    from tlray.models.encoder.engines.onnxruntime.runtime import OnnxRuntime
    from tlray.models.encoder.int8.calibration import calibrate

    if quantization is None:
        quantization, exact_below = calibrate(backbone)
    document = _document(backbone, quantization, exact_below, folder or cache_folder("engines"))
    forwards = OnnxRuntime().open(document, "int8", lanes or 0)
    return Encoder.of_forwards(forwards, backbone.recipe, backbone.shapes, _CPU, 1, threads=lanes or 0, engine="onnxruntime")


def _document(backbone: Backbone, quantization: Quantization, exact_below: int, folder: Path) -> bytes:
    """The network's document: that which is kept on this machine, or a new one."""
    from tlray.models.encoder.int8.document import Int8Document  # needs an extra

    def make() -> bytes:
        return Int8Document(backbone).at(quantization.ranges, exact_below)

    versions = [torch.__version__, *(version(package) for package in ("onnx", "onnxscript")), _onnxruntime_version()]
    key = ["int8", FORMAT, backbone.recipe.recipe_id, exact_below, quantization.sha256, *versions]
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.blob"
    try:
        if (there := read_whole(path)) is not None:
            return there
        with only_one(path.with_suffix(".lock"), wait=True):
            if (there := read_whole(path)) is None:
                there = make()
                write_whole(path, there)
        return there
    except OSError as error:
        _log.warning("nothing can be kept on this machine (%s): the network is converted anew by each process", error)
        return make()


def _onnxruntime_version() -> str:
    import onnxruntime  # whose package has another name for GPUs

    return str(onnxruntime.__version__)
