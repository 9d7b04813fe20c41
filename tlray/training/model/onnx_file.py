"""A trained model in the format of ONNX, made without TorchScript, that has shown that it computes the same.

Shape legend: B images, H height, W width, C channels, D embedding length, K outputs.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tlray.errors import BackboneError, first_line
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import join
from tlray.models.backbones.images import load_backbone, with_taps
from tlray.models.encoder.engines.onnxruntime.export import EXPORT_ERRORS, export
from tlray.models.encoder.network.network import Network
from tlray.models.layers.heads import Head
from tlray.models.layers.taps import Tappable
from tlray.recipe import Precision, Recipe, golden_images, of_images
from tlray.training.model.model import HEAD_NAME, NETWORK_NAME, Model

TOLERANCE = 1e-4
"""Largest difference of onnxruntime's scores to torch's, relative to the largest score where that is over 1. Both compute in
fp32 and add in other orders."""

CHECKED_ROWS = 5
"""Another number than the export's example has, so that a fixed batch would be seen."""


class _Whole(nn.Module):
    """A network with its head: from images_BHWC, uint8, to scores_BK."""

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images_BHWC: Tensor) -> Tensor:
        scores_BK: Tensor = self.head(self.network(images_BHWC)[0])
        return scores_BK


def head_as_onnx(model: Model) -> tuple[bytes, float]:
    """Convert the head of a model, without its network.

    Returns:
        The file, and the largest difference of onnxruntime's scores to torch's.
    """
    features_BD = np.random.default_rng(0).standard_normal((CHECKED_ROWS, model.card.head.inputs), np.float32)
    return _export(model, model.head, "features", features_BD)


def network_as_onnx(model: Model, model_uri: str) -> tuple[bytes, float]:
    """Convert the recipe's network up to the model's tap, with its pooling and the head; returns as `head_as_onnx`.

    Args:
        model: loaded.
        model_uri: where a fine-tuned network's weights are.
    """
    recipe = of_images(model.card.recipe)
    if NETWORK_NAME in model.card.files:
        recipe = recipe.model_copy(update={"weights": join(model_uri, NETWORK_NAME)})
    backbone = with_taps(load_backbone(recipe, local_copy), [model.card.tap])
    if isinstance(backbone.module, Tappable):
        raise BackboneError(f"{recipe.backbone} is not computed by torch; export the head alone (without --network)")
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
    import onnx

    try:
        proto = export(module, example, name, ["scores"], any_batch=True)
    except EXPORT_ERRORS as error:
        reason = first_line(error.__cause__ or error)
        raise BackboneError(
            f"the model cannot be written as ONNX: {reason}; export the head alone (without --network)"
        ) from error
    onnx.helper.set_model_props(proto, dict(about))
    data: bytes = proto.SerializeToString()
    return data


def _about(model: Model) -> dict[str, str]:
    """Say in the file's metadata what it takes and what it gives."""
    card, recipe = model.card, model.card.recipe
    preparation = recipe.preprocessing if isinstance(recipe, Recipe) else recipe.tokens
    return {
        "tlray.recipe_id": card.recipe_id,
        "tlray.tap": card.tap,
        "tlray.preprocessing": preparation.model_dump_json(),
        "tlray.task": card.task,
        "tlray.classes": json.dumps(card.classes),
        "tlray.head_sha256": card.files[HEAD_NAME],
    }


def _run(data: bytes, name: str, inputs: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    scores_BK: np.ndarray = session.run(["scores"], {name: inputs})[0]
    return scores_BK
