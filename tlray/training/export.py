"""`tlray export`: a trained model as ONNX, written only once it has shown that it computes the same."""

import hashlib
from typing import Any

from tlray.config import ExportConfig
from tlray.errors import ConfigError
from tlray.extras import require
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join, to_uri


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
    require("onnx", "onnx", "onnxscript", "onnxruntime", what="tlray export")
    from tlray.training.model.model import load_model  # torch is slow to import
    from tlray.training.model.onnx_file import head_as_onnx, network_as_onnx

    if config.out is not None and not config.out.endswith(".onnx"):
        raise ConfigError(f"out is {config.out}, expected the name of the file to write, which ends in .onnx")
    model_uri = to_uri(config.model)
    model = load_model(model_uri)
    out = to_uri(config.out) if config.out else join(model_uri, "model.onnx" if config.network else "head.onnx")
    data, difference = network_as_onnx(model, model_uri) if config.network else head_as_onnx(model)
    open_store(out).write(out, data)
    return {
        "model": model_uri,
        "out": out,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "largest_difference": difference,
    }
