"""The graph of a model: what of it can be tapped, which value is the penultimate, and the model that ends at some of them."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import onnx
from onnx import helper

from tlray.errors import BackboneError
from tlray.models.libraries.onnx.file import OnnxFile
from tlray.models.libraries.onnx.images import ImageInput
from tlray.models.libraries.onnx.values import FLOATS, UNKNOWN, Value, image_value_info, infer_values

_WEIGHTED = {
    "Conv": 1, "Gemm": 1, "MatMul": 1, "FusedConv": 1, "FusedGemm": 1, "FusedMatMul": 1, "ConvInteger": 1, "MatMulInteger": 1,
    "DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 1, "MatMulNBits": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3,
}  # fmt: skip
"""Operators that classify, with the place of their weights among their inputs; the features are the first input."""

_SCALES = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QGemm": 7, "QLinearConcat": 0,
    "QLinearGlobalAveragePool": 3, "QLinearAveragePool": 3, "QLinearLeakyRelu": 3, "QLinearSigmoid": 3, "QLinearReduceMean": 3,
}  # fmt: skip
"""Operators that give quantised values, with the place of the scale among their inputs; the zero point is the next."""

_KEEP_LEVELS = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
"""Operators whose quantised output has the scale of their input."""

_POOLINGS = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "ReduceMean", "ReduceSum", "QLinearGlobalAveragePool"}
    | {"QLinearAveragePool", "QLinearReduceMean"}
)

_AFTER_SCORES = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "QuantizeLinear", "DequantizeLinear"})

_SOFTMAXES = frozenset({"Softmax", "QLinearSoftmax"})

_CALIBRATING = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
"""Operators that choose a scale by all values of a batch, so that images change each other's numbers."""


class Graph:
    """The graph of an ONNX model that takes images.

    Args:
        file: the model.
        image: its input.
    """

    def __init__(self, file: OnnxFile, image: ImageInput) -> None:
        self.file, self.image = file, image
        self._graph = file.model.graph
        self._producers = {name: node for node in self._graph.node for name in node.output if name}
        self._live = self._find_live()
        self._values = infer_values(file.model, image)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the values that can be tapped, in the order in which they are computed; the last one gives the scores."""
        names = [name for node in self._graph.node for name in node.output if name in self._live and self._is_tappable(name)]
        last = self._logits
        return tuple(name for name in names if name != last) + ((last,) if last in names else ())

    @cached_property
    def penultimate(self) -> str | None:
        """What goes into the classifier before the first output; that output where there is none. None where it is no layer.

        The classifier is the last operator with weights, if all that comes after it rests on it alone (no shortcut passes it
        by), and if it is no convolution whose map is pooled afterwards, unless a softmax follows.
        """
        output = self._graph.output[0].name
        nodes = self._nodes_for([output])
        for at in reversed(range(len(nodes))):
            node, after = nodes[at], nodes[at + 1 :]
            place = _WEIGHTED.get(node.op_type)
            if place is None or node.input[0] not in self._live or node.input[place] in self._live:
                continue
            kinds = {each.op_type for each in after}
            is_map = "Conv" in node.op_type and bool(kinds & _POOLINGS) and not kinds & _SOFTMAXES
            if is_map or not self._rests_on(node.output[0], after, output):
                break
            return self._tappable_before(node.input[0])
        return output if output in self._producers and self._is_tappable(output) else None

    @cached_property
    def scores_layer(self) -> str:
        """The value that is the first output, or goes into its softmax, so that it has logits.

        Raises:
            BackboneError: it gives probabilities of several labels, which no softmax makes.
        """
        producer = self._producers.get(self._logits)
        if self._logits not in self.layers or (producer is not None and producer.op_type in ("Sigmoid", "HardSigmoid")):
            last = producer.op_type if producer is not None else "no layer"
            raise BackboneError(
                f"{self.file.where} ends in {last}, so it gives no scores of which one class is right; train a head (tlray "
                "train) on an inner value"
            )
        return self._logits

    @property
    def calibrates_on_batches(self) -> bool:
        """Whether images of a batch change each other's numbers."""
        return any(node.op_type in _CALIBRATING for node in self._graph.node)

    def describe(self, layer: str) -> str:
        """A value and the shape that it has for one image."""
        return f"{layer} ({self._values.get(layer, UNKNOWN).of_one_image})"

    def end_at(self, taps: Sequence[str]) -> bytes:
        """The model that computes some values and nothing that comes after them; quantised ones are made floats.

        Args:
            taps: of `layers`.

        Returns:
            The document; tensors that lie in other files stay there.
        """
        model = self.file.model
        nodes = self._nodes_for(taps)
        used = {name for node in nodes for name in _inputs(node)}
        cut = onnx.ModelProto(ir_version=max(4, model.ir_version), opset_import=model.opset_import, functions=model.functions)
        graph = cut.graph
        graph.name = "backbone"
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for tensor in self._graph.initializer if tensor.name in used)
        graph.sparse_initializer.extend(each for each in self._graph.sparse_initializer if each.values.name in used)
        graph.input.append(image_value_info(self.image))
        for tap in taps:
            name = self.output_name(tap)
            if name != tap:
                scale = self._scale_of(tap)
                assert scale is not None
                graph.node.append(helper.make_node("DequantizeLinear", [tap, *scale], [name]))
            graph.output.append(onnx.ValueInfoProto(name=name))
        document: bytes = cut.SerializeToString()
        return document

    def output_name(self, tap: str) -> str:
        """What a tap is called among the outputs of `end_at`."""
        return tap if self._value(tap).kind in FLOATS or self._scale_of(tap) is None else f"{tap}/float"

    def _value(self, name: str) -> Value:
        return self._values.get(name, UNKNOWN)

    def _find_live(self) -> set[str]:
        """All values that depend on the images."""
        live = {self.image.name}
        for node in self._graph.node:
            if any(name in live for name in _inputs(node)):
                live.update(name for name in node.output if name)
        return live

    def _is_tappable(self, name: str) -> bool:
        """Whether a value is one of floats, or of levels with a scale; of what cannot be inferred the first run shows it."""
        kind = self._value(name).kind
        return kind in FLOATS or kind == UNKNOWN.kind or self._scale_of(name) is not None

    def _rests_on(self, name: str, after: Iterable[onnx.NodeProto], output: str) -> bool:
        """Whether what nodes compute depends on the images only through one value."""
        derived = {name}
        for node in after:
            live = {each for each in _inputs(node) if each in self._live}
            if live & derived:
                if not live <= derived:
                    return False
                derived.update(node.output)
        return output in derived

    def _scale_of(self, name: str) -> list[str] | None:
        """The scale and zero point of a quantised value; None of others."""
        node = self._producers.get(name)
        while node is not None and node.op_type in _KEEP_LEVELS:
            node = self._producers.get(node.input[0])
        if node is None:
            return None
        if node.op_type == "DynamicQuantizeLinear":
            return list(node.output[1:3]) if name != node.output[1] and name != node.output[2] else None
        place = _SCALES.get(node.op_type)
        if place is None or len(node.input) <= place or not node.input[place]:
            return None
        return [each for each in node.input[place : place + 2] if each]

    def _tappable_before(self, name: str) -> str | None:
        """A value, or the one that it is the quantised form of."""
        while name in self._producers and not self._is_tappable(name):
            name = self._producers[name].input[0]
        return name if name in self._producers else None

    @cached_property
    def _logits(self) -> str:
        """The first output, or what goes into its softmax."""
        output: str = self._graph.output[0].name
        name = output
        while (node := self._producers.get(name)) is not None and node.op_type in _AFTER_SCORES:
            name = node.input[0]
        return str(node.input[0]) if node is not None and node.op_type in _SOFTMAXES else output

    def _nodes_for(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that values depend on, in the model's order, which is that of computation."""
        needed, nodes = set(names), []
        for node in reversed(self._graph.node):
            if any(name in needed for name in node.output):
                nodes.append(node)
                needed.update(_inputs(node))
        return nodes[::-1]


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """What a node takes, with what the graphs within it take from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _inputs(inner)
