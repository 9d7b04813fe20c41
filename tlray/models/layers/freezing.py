"""What of a network is trained: its anatomy, seen in one forward pass, and which of it a cut freezes.

A *cut* is a layer through whose output everything goes that the tap depends on: what comes before it can be frozen, or computed
once and cached. Frozen means both: parameters without gradients, and modules that stay in evaluation mode, so that batch
norms keep their statistics and dropout does nothing.

Shape legend: B images, C channels, H height, W width.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from tlray.errors import BackboneError
from tlray.models.layers.taps import INPUT_SUFFIX, find_layer

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SHOWN_CUTS = 60


@dataclass(frozen=True)
class Anatomy:
    """What one forward pass shows of a network up to its tap.

    Attributes:
        tap: the layer whose output counts.
        layers: names in the order in which they were first done, the tap's last.
        cuts: those of them that are cuts, to the parameters that their outputs depend on.
        used: parameters that the tap depends on.
        blocks: in order of execution, for each block (see `_blocks`) its used parameters; those outside of any block, such as
            a class token, are the first one's.
        weighted: layers with parameters of their own that were done when a layer was, itself included.
    """

    tap: str
    layers: tuple[str, ...]
    cuts: Mapping[str, frozenset[str]]
    used: frozenset[str]
    blocks: tuple[tuple[str, ...], ...]
    weighted: Mapping[str, int]

    def choose_cut(self, freeze: str) -> str | None:
        """The cut that a user means.

        Args:
            freeze: `none`; `all` (up to the tap: only the head is trained); a cut's name; or how much at most: a number of
                layers with weights (`12`), or a share of them (`0.5`).

        Returns:
            Its name, or None where nothing is frozen.

        Raises:
            BackboneError: there is no such layer, or it is not a cut; the message lists the cuts.
        """
        if freeze == "none":
            return None
        if freeze == "all":
            return self.tap
        limit = _limit(freeze, self.weighted[self.tap])
        if limit is not None:
            return self._last_cut(freeze, limit)
        if freeze not in self.cuts:
            raise not_a_cut(freeze, list(self.cuts), "is no layer of this network, or not everything goes through it")
        return freeze

    def _last_cut(self, freeze: str, limit: int) -> str | None:
        """The last cut up to which there are at most so many layers with weights; None for a limit of none."""
        if not limit:
            return None
        fitting = [cut for cut in self.cuts if 0 < self.weighted[cut] <= limit]
        if not fitting:
            first = min((cut for cut in self.cuts if self.weighted[cut]), key=lambda cut: self.weighted[cut], default=self.tap)
            raise BackboneError(
                f"freeze {freeze} freezes nothing: the network cannot be cut before {first}, which freezes "
                f"{self.weighted[first]} layers with weights; give at least that many, or none"
            )
        return max(fitting, key=lambda cut: (self.weighted[cut], self.layers.index(cut)))

    def frozen_by(self, cut: str | None) -> "Frozen":
        """What is not trained where a cut is chosen; what the tap does not depend on never is."""
        names = self.used if cut == self.tap else self.cuts[cut] if cut else frozenset()
        done = self.layers.index(cut) + 1 if cut else 0
        active = {prefix for layer in self.layers[done:] for prefix in _prefixes(layer)}
        return Frozen(cut, self.used - names, frozenset(active))


@dataclass(frozen=True)
class Frozen:
    """What is trained and what is not.

    Attributes:
        cut: the layer up to which all is frozen; None where nothing is.
        trained: names of the parameters that are trained.
        active: names of the layers that may be in training mode, and of those that hold them.
    """

    cut: str | None
    trained: frozenset[str]
    active: frozenset[str]

    def apply(self, module: nn.Module, training: bool) -> None:
        """Set a module's mode and which of its parameters have gradients.

        Args:
            module: the network that was watched.
            training: False puts all of it into evaluation mode.
        """
        for name, layer in module.named_modules():
            layer.training = training and name in self.active
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.trained)


def _prefixes(layer: str) -> list[str]:
    """A layer's name and those of all that hold it, the network itself (an empty name) included."""
    parts = layer.removesuffix(INPUT_SUFFIX).split(".")
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def not_a_cut(name: str, cuts: Sequence[str], why: str) -> BackboneError:
    """The error for a layer that cannot be a cut; names those that can."""
    shown = ", ".join(cuts[:_SHOWN_CUTS]) + (", ..." if len(cuts) > _SHOWN_CUTS else "")
    return BackboneError(f"cannot cut at {name!r}: it {why}; cuts, in order of execution: {shown or 'none'}")


def _limit(freeze: str, weighted: int) -> int | None:
    """How many layers with weights are frozen at most, or None where a layer is named.

    Args:
        freeze: as the user says it.
        weighted: layers with weights that there are.

    Raises:
        BackboneError: it is a number, but neither of layers nor a share of them.
    """
    try:
        number = float(freeze)
    except ValueError:
        return None
    is_share = "." in freeze
    if not 0 <= number <= (1 if is_share else weighted) or not re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]*", freeze):
        what = "share, which is from 0 to 1" if is_share else f"number of layers with weights, of which there are {weighted}"
        raise BackboneError(
            f"freeze {freeze} is no {what}; all but the last layer with weights is {max(0, weighted - 1)}, half of them 0.5; "
            "a layer's name, none and all are understood too"
        )
    if is_share and 0 < number * weighted < 1:
        raise BackboneError(f"freeze {freeze} is less than one of {weighted} layers with weights; give a larger share, or none")
    return int(number * weighted) if is_share else int(freeze)


def examine(module: nn.Module, tap: str, images_BCHW: Tensor) -> Anatomy:
    """Find the cuts and blocks of a network by watching one forward pass.

    Which layers are cuts is read from autograd's graph: a layer is one if all paths from the tap back to the images go through
    its output, which is so where (paths from the tap to it) x (paths from it to the images) = all paths.

    Args:
        module: in evaluation mode; gradients of its parameters are switched on.
        tap: a layer that runs, or `<layer>:input`.
        images_BCHW: normalised.

    Raises:
        BackboneError: there is no such layer, or its output does not depend on the images.
    """
    outputs, calls = _run(module, tap, images_BCHW)
    root = outputs[tap]
    order = _topological(root) if root is not None else []
    names = _parameters(module, order)
    leaf = next((node for node in order if getattr(node, "variable", None) is images_BCHW), None)
    if root is None or leaf is None:
        raise BackboneError(f"what layer {tap} gives does not depend on the images; tap another")
    up, down = _count_paths(order, root, leaf)
    layers = tuple(outputs)
    cuts = {
        name: _reachable(node, names)
        for name, node in outputs.items()
        if node is not None and calls[name] == 1 and up.get(node, 0) * down.get(node, 0) == down[root]
    }
    used = _reachable(root, names)
    owners = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
    weighted = {name: sum(done in owners for done in layers[: index + 1]) for index, name in enumerate(layers)}
    return Anatomy(tap, layers, cuts, used, _blocks(module, layers, used), weighted)


def _run(module: nn.Module, tap: str, images_BCHW: Tensor) -> tuple[dict[str, Node | None], Counter[str]]:
    """For layers done when the tap was: the node in the graph of what each put out last, and how often it ran."""
    outputs: dict[str, Node | None] = {}
    calls: Counter[str] = Counter()
    at_tap: dict[str, Node | None] = {}

    def note(name: str, _layer: nn.Module, _inputs: object, output: object) -> None:
        outputs[name] = output.grad_fn if isinstance(output, Tensor) else None
        calls[name] += 1
        if name == tap:
            note_tap(outputs[name])

    def note_tap(node: Node | None) -> None:
        at_tap.clear()
        at_tap.update({name: before for name, before in outputs.items() if name != tap}, **{tap: node})

    def note_input(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        note_tap(next((value.grad_fn for value in inputs if isinstance(value, Tensor)), None))

    tapped = find_layer(module, tap)
    module.requires_grad_(True)
    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in module.named_modules() if name]
    if tap.endswith(INPUT_SUFFIX):
        handles.append(tapped.register_forward_pre_hook(note_input))
    try:
        with torch.enable_grad():
            module(images_BCHW.requires_grad_(True) * 1)  # layers may change their input in place, which a leaf forbids
    finally:
        for handle in handles:
            handle.remove()
    if tap not in at_tap:
        raise BackboneError(f"layer {tap} does not run when the backbone embeds an image; tap another")
    return at_tap, calls


def _parameters(module: nn.Module, nodes: Iterable[Node]) -> dict[Node, str]:
    """Find the nodes of a graph that stand for parameters, and name them."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    of_nodes = {node: names.get(id(getattr(node, "variable", None))) for node in nodes}
    return {node: name for node, name in of_nodes.items() if name is not None}


def _next(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


def _topological(root: Node) -> list[Node]:
    """Nodes from a root towards the leaves, each before all that it leads to."""
    done: list[Node] = []
    seen = {root}
    stack = [(root, iter(_next(root)))]
    while stack:
        node, following = stack[-1]
        step = next(following, None)
        if step is None:
            done.append(node)
            stack.pop()
        elif step not in seen:
            seen.add(step)
            stack.append((step, iter(_next(step))))
    return done[::-1]


def _count_paths(order: Sequence[Node], root: Node, leaf: Node) -> tuple[dict[Node, int], dict[Node, int]]:
    """Paths from the root to each node, and from each node to the leaf."""
    up: Counter[Node] = Counter({root: 1})
    for node in order:
        for following in _next(node):
            up[following] += up[node]
    down: dict[Node, int] = {}
    for node in reversed(order):
        down[node] = 1 if node is leaf else sum(down[following] for following in _next(node))
    return up, down


def _reachable(root: Node, names: Mapping[Node, str]) -> frozenset[str]:
    return frozenset(names[node] for node in _topological(root) if node in names)


def _blocks(module: nn.Module, layers: Sequence[str], used: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that get one learning rate, and are unfrozen together: a network's blocks in order of execution.

    Containers count as what they hold, and so does a part with more than half of all parameters: that makes residual blocks
    of a ResNet, layers of a ViT, stages of a ConvNeXt.
    """
    total = sum(parameter.numel() for parameter in module.parameters())

    def split(name: str, part: nn.Module) -> Iterable[str]:
        children = [(child, layer) for child, layer in part.named_children() if any(True for _ in layer.parameters())]
        is_large = sum(parameter.numel() for parameter in part.parameters()) > total / 2 and len(children) > 1
        if isinstance(part, _CONTAINERS) or is_large:
            for child, layer in children:
                yield from split(f"{name}.{child}".lstrip("."), layer)
        elif name:
            yield name

    position = {name: index for index, name in enumerate(layers)}
    names = sorted((name for name in split("", module) if name in position), key=position.__getitem__)
    blocks = [[parameter for parameter in used if parameter.startswith(f"{name}.")] for name in names]
    taken = {parameter for block in blocks for parameter in block}
    blocks[:1] = [[*(used - taken), *(blocks[0] if blocks else ())]]
    return tuple(tuple(sorted(block)) for block in blocks if block)
