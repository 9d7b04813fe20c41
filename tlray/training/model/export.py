"""`tlray export`: a trained model as ONNX, without TorchScript, written only once it has shown that it computes the same.

Shape legend: B images, H height, W width, C channels, D embedding length, K outputs.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlray.config import ExportConfig
from tlray.errors import BackboneError, ConfigError, first_line
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join, to_uri
from tlray.models.backbones import load_backbone, with_taps
from tlray.models.encoder.network import Network
from tlray.models.heads import Head
from tlray.recipe import Precision, golden_images
from tlray.training.model.model import HEAD_NAME, NETWORK_NAME, Model, load_model

TOLERANCE = 1e-4
"""Largest difference of onnxruntime's scores to torch's, relative to the largest score where that is over 1. Both compute in
fp32 and add in other orders."""

CHECKED_ROWS = 5
"""Another number than the export's example has, so that a fixed batch would be seen."""

_EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, AttributeError, KeyError)
"""What `torch.export` and `torch.onnx` raise for networks that they cannot convert."""


class _Whole(nn.Module):
    """images_BHWC, uint8, to scores_BK."""

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images_BHWC: Tensor) -> Tensor:
        scores_BK: Tensor = self.head(self.network(images_BHWC)[0])
        return scores_BK


def export(config: ExportConfig) -> dict[str, Any]:
    """Write a model as ONNX, at fp32, for batches of any size.

    The head takes `features`, float32 B, D, as a table of the recipe holds them. The network takes `images`, uint8 B, H, W, 3:
    RGB, resized and cropped as the preprocessing says that the file's metadata holds; normalisation is inside. Both give
    `scores`, float32 B, K: logits, or the values of a regression.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: no model there, packages of the extra `onnx` missing, or a network that cannot be converted.
        ModelCorruptError: a file of the model is not what its card says.
    """
    model_uri = to_uri(config.model)
    model = load_model(model_uri)
    if config.network:
        data, difference = export_network(model, model_uri)
    else:
        data, difference = export_head(model)
    out = to_uri(config.out) if config.out else join(model_uri, "model.onnx" if config.network else "head.onnx")
    open_store(out).write(out, data)
    return {
        "model": model_uri,
        "out": out,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "largest_difference": difference,
    }


def export_head(model: Model) -> tuple[bytes, float]:
    """The head alone.

    Returns:
        The file, and the largest difference of onnxruntime's scores to torch's.
    """
    features_BD = np.random.default_rng(0).standard_normal((CHECKED_ROWS, model.card.head.inputs), np.float32)
    return _export(model, model.head, "features", features_BD)


def export_network(model: Model, model_uri: str) -> tuple[bytes, float]:
    """The recipe's network up to the model's tap, pooling, and the head; returns as `export_head`.

    Args:
        model: loaded.
        model_uri: where a fine-tuned network's weights are.
    """
    recipe = model.card.recipe
    if NETWORK_NAME in model.card.files:
        recipe = recipe.model_copy(update={"weights": join(model_uri, NETWORK_NAME)})
    backbone = with_taps(load_backbone(recipe, local_copy), [model.card.tap])
    exact = backbone.recipe.model_copy(update={"precision": Precision(compute="fp32", storage="full")})
    network = Network.of(replace(backbone, recipe=exact), torch.device("cpu"), exact_below=0)
    images_BHWC = golden_images(*recipe.preprocessing.crop)
    images_BHWC = np.concatenate([images_BHWC, images_BHWC])[:CHECKED_ROWS]
    return _export(model, _Whole(network, model.head), "images", images_BHWC)


def _export(model: Model, module: nn.Module, name: str, inputs: np.ndarray) -> tuple[bytes, float]:
    module, example = module.eval(), torch.from_numpy(inputs)
    with torch.inference_mode():
        expected_BK = module(example).numpy()
    data = _to_onnx(module, name, example[:2], _about(model))
    found_BK = _run(data, name, inputs)
    difference = float(np.abs(found_BK - expected_BK).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected_BK).max())):
        raise BackboneError(
            f"{model.card.recipe.backbone} computes other scores as ONNX: onnxruntime's differ from torch's by up to "
            f"{difference:.3g}, expected at most {TOLERANCE}; nothing was written"
        )
    return data, difference


def _to_onnx(module: nn.Module, name: str, example: Tensor, about: Mapping[str, str]) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch.onnx converts with
    except ImportError as error:
        raise ConfigError(f"{error}; install the packages of the extra: pip install 'tlray[onnx]'") from error
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[name],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except (*_EXPORT_ERRORS, torch.onnx.errors.OnnxExporterError) as error:
        reason = first_line(error.__cause__ or error)
        raise BackboneError(
            f"the model cannot be written as ONNX: {reason}; export the head alone (without --network)"
        ) from error
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(about))
    data: bytes = proto.SerializeToString()
    return data


def _about(model: Model) -> dict[str, str]:
    """What the file says of itself."""
    card = model.card
    return {
        "tlray.recipe_id": card.recipe_id,
        "tlray.tap": card.tap,
        "tlray.preprocessing": card.recipe.preprocessing.model_dump_json(),
        "tlray.task": card.task,
        "tlray.classes": json.dumps(card.classes),
        "tlray.head_sha256": card.files[HEAD_NAME],
    }


def _run(data: bytes, name: str, inputs: np.ndarray) -> np.ndarray:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{error}; install the packages of the extra: pip install 'tlray[onnx]'") from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    scores_BK: np.ndarray = session.run(["scores"], {name: inputs})[0]
    return scores_BK
