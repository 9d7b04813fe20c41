"""The part of a network from a cut to its tap, as a module of its own that shares the network's parameters.

It is traced by torch.fx: layers that hold no others stay whole, and so keep what they do differently in training; code between
them is recorded as it runs in evaluation mode (dropout inside a functional attention is none in either library's weights).

Shape legend: B images, C channels, H height, W width.
"""

import inspect
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
import torchvision
from timm.layers._fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from tlray.errors import BackboneError
from tlray.models.layers.freezing import not_a_cut
from tlray.models.layers.pooling import Pooling
from tlray.models.layers.taps import INPUT_SUFFIX, TapRunner, find_layer

_TOLERANCE = 1e-5
"""The largest difference of the suffix's features on the probe to the whole network's, relative to their largest: both run the
same kernels."""

TRACE_ERRORS = (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, AssertionError)
"""What code raises that cannot run on fx's stand-ins for tensors."""


class _Tracer(fx.Tracer):
    """Traces a network and notes which nodes each layer takes and gives."""

    def __init__(self) -> None:
        functions = tuple(get_notrace_functions())  # type: ignore[no-untyped-call]
        super().__init__(autowrap_modules=(math, torchvision.ops), autowrap_functions=functions)
        self._whole = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers that hold no others, those of torch itself, and those that timm says cannot be traced."""
        is_whole = not any(m.children()) or isinstance(m, self._whole)
        return is_whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what goes in and comes out."""
        name = self.path_of_module(m)
        self.inputs[name] = args[0] if args else next(iter(kwargs.values()), None)
        output = super().call_module(m, forward, args, kwargs)
        self.outputs[name] = output
        self.calls[name] += 1
        return output

    def node_of(self, tap: str) -> fx.Node | None:
        """The node of what a tap names."""
        name = tap.removesuffix(INPUT_SUFFIX)
        value = (self.inputs if tap.endswith(INPUT_SUFFIX) else self.outputs).get(name)
        return value.node if isinstance(value, fx.Proxy) else None


class Suffix(nn.Module):
    """From what a cut puts out to the tap's pooled features.

    Args:
        graph: of the layers between; its parameters are the network's own, under their names there.
        tap: the recipe's.
        pooling: likewise.
    """

    def __init__(self, graph: nn.Module, tap: str, pooling: Pooling) -> None:
        super().__init__()
        self.graph = graph
        self._tap, self._pooling = tap, pooling

    def forward(self, activations: Tensor) -> Tensor:
        """Compute the tap's pooled features, float32, from what is kept of the cut.

        Args:
            activations: B of what pool `none` keeps of the cut; layers may change it in place.
        """
        return self._pooling(self._tap, self.graph(self._pooling.restored(activations)))


def split_suffix(module: nn.Module, cut: str, tap: str, pooling: Pooling, images_BCHW: Tensor) -> Suffix:
    """Split a network at a cut; held against the whole network on a probe.

    Args:
        module: in evaluation mode.
        cut: name of a layer.
        tap: layer whose output becomes features; the cut itself leaves nothing but the pooling.
        pooling: of the recipe.
        images_BCHW: normalised, a few.

    Raises:
        BackboneError: the network has no such cut, or cannot be traced; the message lists the cuts.
    """
    for name in (cut, tap):
        find_layer(module, name)
    tracer = _Tracer()
    try:
        tracer.trace(module, _defaults(module))
    except TRACE_ERRORS as error:
        raise BackboneError(
            f"{type(module).__name__} cannot be cut: its forward pass cannot be traced ({error}); train it from images"
        ) from error
    end = tracer.node_of(tap)
    start = tracer.node_of(cut)
    if end is None or start is None or tracer.calls[cut] > 1 or not _leads(start, end):
        cuts = _cuts(tracer, end)
        raise not_a_cut(cut, cuts, "is not a layer that runs once, or not everything that the tap depends on goes through it")
    suffix = Suffix(fx.GraphModule(module, _between(start, end)), tap, pooling)
    _check(module, suffix, cut, tap, pooling, images_BCHW)
    return suffix


def _defaults(module: nn.Module) -> dict[str, Any]:
    """What the forward pass takes besides the images (a mask, say), at its defaults."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return {one.name: one.default for one in parameters[1:] if one.default is not one.empty}


def _leads(start: fx.Node, end: fx.Node) -> bool:
    """Whether the end needs nothing of the images but the start."""
    needed = _needed(start, end)
    return start in needed and not any(node.op == "placeholder" for node in needed if node is not start)


def _needed(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Nodes that the end depends on, no further back than the start."""
    needed, stack = set(), [end]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += () if node is start else node.all_input_nodes
    return needed


def _between(start: fx.Node, end: fx.Node) -> fx.Graph:
    needed = _needed(start, end)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {start: graph.placeholder("activations")}
    for node in start.graph.nodes:
        if node in needed and node is not start:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    return graph


def _cuts(tracer: _Tracer, end: fx.Node | None) -> list[str]:
    """List the layers at which the network can be cut before a node, in order of execution."""
    if end is None:
        return []
    nodes = {name: tracer.node_of(name) for name in tracer.outputs if tracer.calls[name] == 1}
    return [name for name, node in nodes.items() if node is not None and _leads(node, end)]


def _check(module: nn.Module, suffix: Suffix, cut: str, tap: str, pooling: Pooling, images_BCHW: Tensor) -> None:
    with torch.no_grad():
        expected = TapRunner(module, [tap], pooling)(images_BCHW)[tap]
        raw = replace(pooling, pool="none")
        activations = TapRunner(module, [cut], raw)(images_BCHW)
        found = suffix.eval()(activations[cut])
    if found.shape != expected.shape or (found - expected).abs().max() > _TOLERANCE * expected.abs().max():
        raise BackboneError(
            f"cannot cut at {cut!r}: the layers after it, alone, do not give what the whole network gives; train it from images"
        )
