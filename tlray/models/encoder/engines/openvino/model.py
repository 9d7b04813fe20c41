"""A network as OpenVINO runs it on a CPU: the torch module with its taps, pooling and preparation of pixels as one graph.

OpenVINO folds batch norms, lays weights out and joins layers by itself, so what it is given is the plain module.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import io
import os
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.decomp_utils import CustomDecompTable

from tlray.errors import first_line
from tlray.models.encoder.engines.openvino.imports import (
    FRONTEND_ERRORS,
    FrontEndManager,
    TorchFXPythonDecoder,
    openvino,
    ops_to_not_decompose,
)
from tlray.models.encoder.lanes import Forward
from tlray.models.encoder.network.network import Network
from tlray.recipe import Compute

HINTS: dict[Compute, str] = {"fp32": "f32", "bf16": "bf16"}
"""`INFERENCE_PRECISION_HINT` for what OpenVINO computes here; fp16 is left to torch, as few processors have it."""

_CAPABILITIES: dict[Compute, str] = {"fp32": "FP32", "bf16": "BF16"}

_WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}

_KEEP_PRECISION = "precise_0"
"""What OpenVINO's own passes mark nodes with whose numbers must not be rounded (`ov::disable_fp16_compression`); the CPU's
compiler leaves marked nodes at fp32 at 16 bits of any kind."""

_first_pass = threading.Lock()
"""OpenVINO's binding learns what NumPy's arrays are in the first pass of a process. Two threads in it at once wait for each
other without end: one holds the interpreter, the other what C++ makes once. So one thread passes before there are several."""


def can_compute(compute: Compute) -> bool:
    """Whether this processor computes so in OpenVINO without emulating it."""
    return compute in HINTS and _CAPABILITIES[compute] in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convert(network: Network, example_BHWC: Tensor) -> openvino.Model:
    """A graph from uint8 pixels to the rows of the table's columns, of fp32 and of the example's batch size.

    Args:
        network: on the CPU, of `compute` fp32.
        example_BHWC: uint8.
    """
    return convert_module(network.again().eval(), example_BHWC)


def convert_module(module: nn.Module, example: Tensor) -> openvino.Model:
    """A module of torch as a graph for inputs of one shape.

    Not by `openvino.convert_model`, which tells its makers of each call over the internet; these are its steps. It keeps one
    table for all calls, and warns with tracebacks of the operations that an earlier call took out of it.

    Raises:
        RuntimeError: among others of torch; it has an operation that OpenVINO does not know.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (example,), strict=False)
        table: Any = CustomDecompTable()  # type: ignore[no-untyped-call]
        for operation in table.keys() & set(ops_to_not_decompose()):
            table.pop(operation)
        decoder = TorchFXPythonDecoder(program.run_decompositions(table).module(), dynamic_shapes=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        try:
            return frontend.convert(frontend.load(decoder))
        except FRONTEND_ERRORS as error:
            # Its first lines name a place in OpenVINO's own source; the reasons are a list.
            reasons = [line.removeprefix("-- ") for line in str(error).splitlines() if line.startswith("-- ")]
            raise RuntimeError("; ".join(reasons) or first_line(error)) from error


def count_weighted(model: openvino.Model) -> int:
    """Count the layers that can stay at fp32: convolutions and products with weights."""
    return sum(map(_is_weighted, model.get_ordered_ops()))


def with_exact(model: openvino.Model, exact_below: int) -> openvino.Model:
    """A copy that computes all up to its first layers at fp32 under any hint.

    Args:
        model: of `convert`.
        exact_below: so many layers with weights, in the graph's order.
    """
    marked, seen = model.clone(), 0
    for node in marked.get_ordered_ops():
        seen += _is_weighted(node)
        if seen > exact_below:
            break
        node.get_rt_info()[_KEEP_PRECISION] = ""
    return marked


def _is_weighted(node: openvino.Node) -> bool:
    return node.get_type_name() in _WEIGHTED and any(
        _is_constant(node.input_value(index).get_node()) for index in range(node.get_input_size())
    )


def _is_constant(node: openvino.Node) -> bool:
    """Whether a node is a constant, or what reshapes or converts one."""
    while node.get_input_size() and node.get_type_name() in {"Reshape", "Convert", "Transpose", "Unsqueeze"}:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def settings(compute: Compute, streams: int) -> dict[str, Any]:
    """The settings by which OpenVINO compiles a graph.

    Args:
        compute: of the recipe.
        streams: requests that run at once, one core each; 0 for one at a time on all cores.
    """
    return {
        "INFERENCE_PRECISION_HINT": HINTS[compute],
        "PERFORMANCE_HINT": "THROUGHPUT" if streams else "LATENCY",
        "NUM_STREAMS": streams or 1,
        "INFERENCE_NUM_THREADS": streams or torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # where threads run is for the process and its system to say
    }


def compile_graph(model: openvino.Model, compute: Compute, streams: int) -> openvino.CompiledModel:
    """Compile a graph for this processor."""
    return _core().compile_model(model, "CPU", settings(compute, streams))


def to_bytes(compiled: openvino.CompiledModel) -> bytes:
    """A compiled graph with its weights."""
    stream = io.BytesIO()
    compiled.export_model(stream)
    return stream.getvalue()


def from_bytes(content: bytes, compute: Compute, streams: int) -> openvino.CompiledModel:
    """The graph that `to_bytes` wrote on a machine of this kind by this version."""
    return _core().import_model(io.BytesIO(content), "CPU", settings(compute, streams))


def _core() -> openvino.Core:
    """OpenVINO's only one of this process.

    Raises:
        RuntimeError: it was made before the process was forked; its threads are not there any more.
    """
    process, core = _made()
    if process != os.getpid():
        raise RuntimeError("OpenVINO was in use before this process was forked; start processes by spawn for it")
    return core


@cache
def _made() -> tuple[int, openvino.Core]:
    """The one that is never dropped, and the process that made it.

    Each that is made gives its thread another stack for signals, and each that is dropped gives the one before it back. Where
    they end in another order that memory was freed, and the next SIGTERM ends the process by a segmentation fault.
    """
    return os.getpid(), openvino.Core()


class OpenVinoForward:
    """A request of a compiled graph, called as a lane calls a network."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))

    def __call__(self, images_BHWC: Tensor) -> Sequence[Tensor]:
        """Run one batch; what comes of it shares no memory with the request."""
        _core()  # refuses in a process that was forked from the one that made the request
        found = self._request.infer([images_BHWC.numpy()], share_inputs=True)
        return [torch.from_numpy(found[index]) for index in self._outputs]


class OpenVinoGraph:
    """OpenVINO's model as a graph; see `tlray.models.encoder.engines.converted.Graph`."""

    def __init__(self, model: openvino.Model) -> None:
        self._model = model

    def count_layers(self) -> int:
        """Count the layers that can stay at fp32: convolutions and products with weights."""
        return count_weighted(self._model)

    def at(self, compute: Compute, exact_below: int) -> bytes:
        """The compiled graph with its weights."""
        return to_bytes(compile_graph(with_exact(self._model, exact_below), compute, 0))


class OpenVino:
    """The engine OpenVINO; see `tlray.models.encoder.engines.converted.Runtime`."""

    title = "OpenVINO"
    can_compute = staticmethod(can_compute)

    def convert(self, network: Network, example_BHWC: Tensor) -> OpenVinoGraph:
        """Convert a network of fp32 for as many images as the example has."""
        return OpenVinoGraph(convert(network, example_BHWC))

    def open(self, content: bytes, compute: Compute, lanes: int) -> Sequence[Forward]:
        """A request for each lane, with a stream of its own."""
        compiled = from_bytes(content, compute, lanes)
        forwards = [OpenVinoForward(compiled) for _ in range(max(lanes, 1))]
        with _first_pass:
            forwards[0](torch.zeros(tuple(compiled.inputs[0].shape), dtype=torch.uint8))
        return forwards
