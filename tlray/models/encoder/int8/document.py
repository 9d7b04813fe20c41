"""A network at int8 as a document of ONNX: which tensors are rounded, to which ranges, and what onnxruntime makes of them.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from google.protobuf.message import Error as ProtobufError
from onnx import NodeProto, TensorProto
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tlray.errors import BackboneError, ConfigError
from tlray.models.backbones.images import Backbone
from tlray.models.backbones.network_input import to_network_input_of_graph
from tlray.models.encoder.engines.onnxruntime.export import EXPORT_ERRORS, export
from tlray.models.encoder.engines.onnxruntime.runtime import INPUT, OnnxRuntime
from tlray.models.encoder.network.network import Folded, Network
from tlray.models.libraries.onnx.sessions import RUN_ERRORS, new_session, reason_of
from tlray.recipe import Ranges

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ROUNDED = [*_WEIGHTED, "Relu", "Clip", "MaxPool"]
"""Operators that compute at 8 bits: what has weights, and what merely cuts off or chooses from its outputs. Sums, norms,
softmax and other activations stay at fp32: residual streams of transformers have outliers that would take all of the 256
levels (Dettmers et al., LLM.int8(), 2022, arXiv 2208.07339)."""

_DIGITS = 4
"""Significant digits of ranges, so that the last bits of a processor's sums seldom make another scale; 256 levels need 3."""

_CPU = torch.device("cpu")


class Int8Document:
    """A network at fp32 for one image, of which documents at int8 are made.

    Weights are rounded by output channels to -64 to 64, activations to 0 to 255. On x86 processors without VNNI the sum of two
    products of 8 bits has only 16 bits, and would be cut off with weights beyond that, on others not
    (onnxruntime's documents: Quantize ONNX models, `reduce_range`). It is part of the definition, so that all compute alike.

    One image at a time: then neither names nor numbers depend on how many are embedded at once.

    Args:
        backbone: stays as it is.

    Attributes:
        tensors: names of those that may be rounded.
        layers: how many have weights, and can stay at fp32.

    Raises:
        BackboneError: it cannot be converted.
    """

    def __init__(self, backbone: Backbone) -> None:
        folded, self._name = Folded.of(backbone), backbone.recipe.backbone
        # A copy: torch's encoder, which shares the module's tensors, has them laid out otherwise.
        module = copy.deepcopy(folded.module).to(memory_format=torch.contiguous_format)
        network = Network(module, backbone.recipe, "fp32", backbone.pooling, _CPU, to_network_input_of_graph)
        example_BHWC = torch.zeros((1, *backbone.recipe.preprocessing.crop, 3), dtype=torch.uint8)
        with _refused(self._name):
            self._model = onnx.shape_inference.infer_shapes(export(network.eval(), example_BHWC, INPUT))
        graph = self._model.graph
        self._values = {value.name: value for value in (*graph.value_info, *graph.output)}
        touched = [name for node in graph.node if node.op_type in _ROUNDED for name in (*node.input, *node.output)]
        self.tensors = [name for name in dict.fromkeys(touched) if self._is_float(name)]
        constants = {constant.name for constant in graph.initializer}
        self._weighted = [at for at, node in enumerate(graph.node) if _has_weights(node, constants)]
        self.layers = len(self._weighted)

    def _is_float(self, name: str) -> bool:
        value = self._values.get(name)  # None of constants
        return value is not None and value.type.tensor_type.elem_type == TensorProto.FLOAT

    def ranges(self, images_BHWC: np.ndarray) -> dict[str, tuple[float, float]]:
        """Compute the network at fp32, and see between which values each tensor lies.

        Args:
            images_BHWC: uint8, to calibrate on.

        Raises:
            BackboneError: there are values that are not finite.
        """
        watched = onnx.ModelProto()
        watched.CopyFrom(self._model)
        del watched.graph.output[:]
        watched.graph.output.extend(self._values[name] for name in self.tensors)
        with _refused(self._name):
            session = new_session(watched.SerializeToString(), torch.get_num_threads(), _CPU)
            ends = [
                [(value.min(), value.max()) for value in session.run(None, {INPUT: image_HWC[None]})]
                for image_HWC in images_BHWC
            ]
        lows_BT, highs_BT = np.moveaxis(np.array(ends, np.float64), 2, 0)
        if not (np.isfinite(lows_BT).all() and np.isfinite(highs_BT).all()):
            raise BackboneError(f"{self._name} has values inside that are not finite; use recipe.precision.compute fp32")
        pairs = zip(lows_BT.min(axis=0), highs_BT.max(axis=0), strict=True)
        return {name: (_short(low), _short(high)) for name, (low, high) in zip(self.tensors, pairs, strict=True)}

    def at(self, ranges: Ranges, exact_below: int) -> bytes:
        """The network at int8.

        Args:
            ranges: of all its tensors; a table with more taps has more.
            exact_below: so many layers with weights, the first in the document's order, stay at fp32, and all before them.

        Raises:
            ConfigError: there is none of some tensor.
        """
        if missing := set(self.tensors) - ranges.keys():
            raise ConfigError(
                f"the table has no ranges of {len(missing)} tensors of the network, such as {min(missing)}, as torch "
                f"{torch.__version__} names them; use the versions that made it, or extract to a new table"
            )
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        nodes = model.graph.node
        last = self._weighted[:exact_below][-1:]  # of those that the network up to its taps has
        exact = [node.name for node in nodes[: last[0] + 1]] if last else []
        kept = {name: tuple(map(np.float32, ranges[name])) for name in self.tensors}
        with _refused(self._name), _without_its_warnings():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=True,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, kept),
                nodes_to_quantize=[],
                nodes_to_exclude=exact,
                op_types_to_quantize=_ROUNDED,
                extra_options={"MatMulConstBOnly": True},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()  # as ONNX wants it; onnxruntime alone does without
            return bytes(quantizer.model.model.SerializeToString())

    def embed(self, ranges: Ranges, exact_below: int, images_BHWC: np.ndarray) -> list[np.ndarray]:
        """Compute the network at int8; features_BD, float32, one a tap."""
        document = self.at(ranges, exact_below)
        with _refused(self._name):
            (forward,) = OnnxRuntime().open(document, "int8", 0)
            each = [forward(torch.from_numpy(image_HWC[None])) for image_HWC in images_BHWC]
        return [torch.cat(rows).numpy() for rows in zip(*each, strict=True)]


def _has_weights(node: NodeProto, constants: set[str]) -> bool:
    return node.op_type in _WEIGHTED and not constants.isdisjoint(node.input)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Name a network that export or onnxruntime cannot take."""
    try:
        yield
    except (*EXPORT_ERRORS, *RUN_ERRORS, ProtobufError) as error:
        raise BackboneError(
            f"{name} cannot be computed at int8: {reason_of(error)}; use recipe.precision.compute bf16 or fp32"
        ) from error


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    """Onnxruntime's quantizer writes to the process's root logger, and sets one up where there is none.

    What it warns of, biases of channels whose weights are all but nought, shows in the drift, if at all.
    """
    root, quiet = logging.getLogger(), logging.NullHandler()

    def from_others(record: logging.LogRecord) -> bool:
        return record.name != root.name

    root.addHandler(quiet)
    root.addFilter(from_others)
    try:
        yield
    finally:
        root.removeFilter(from_others)
        root.removeHandler(quiet)
