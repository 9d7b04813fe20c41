"""ONNX files as a library of backbones; the packages of the extra `onnx` are imported at the first one that is loaded."""

from collections.abc import Sequence

from tlray.extras import require
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.weights.spec import FetchFile


class Onnx:
    """Networks of ONNX files: `onnx:<path or URI>`, or `onnx:file` with the path or URI as weights."""

    name = "onnx"

    def models(self) -> Sequence[str]:
        """Nothing: any file may be one."""
        return []

    def has(self, model: str) -> bool:
        """Whether a file is named, as it must be."""
        return bool(model)

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        """The network of an ONNX file.

        Raises:
            ConfigError: packages of the extra `onnx` are missing, images have no size or one that the network cannot take, or
                nobody says how they are prepared.
            WeightsError: there is no such file, or not all of it.
            BackboneError: it is no ONNX model, none of images, or one that onnxruntime cannot compute.
        """
        require("onnx", "onnx", "onnxruntime", what="a backbone onnx:<file>")
        from tlray.models.libraries.onnx.load import load

        return load(request, fetch)


def library() -> Onnx:
    """ONNX files, as a library of backbones."""
    return Onnx()
