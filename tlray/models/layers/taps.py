"""Taps: finding layers, and collecting what they put out in one forward pass.

Shape legend: B images, C channels, H height, W width.
"""

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tlray.errors import BackboneError
from tlray.models.layers.pooling import Pooling

INPUT_SUFFIX = ":input"
"""`<layer>:input` taps what goes into a layer."""

_PASS_THROUGH = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)

_WATCHED_OUTPUTS = 16
"""Outputs kept while the classifier is looked for; the penultimate layer is one of the last few before it."""

_SHOWN_LAYERS = 60

_Output = tuple[str, nn.Module, Tensor]


class _LastTapReached(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    pass


@runtime_checkable
class Tappable(Protocol):
    """A module whose layers no hook can see, as those of another runtime: it gives their outputs itself."""

    def layers(self) -> Sequence[str]:
        """Names of all that can be tapped, in the order in which it is computed; the last one gives what the module gives."""
        ...

    def outputs(self, images_BCHW: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        """What these layers put out, B rows each."""
        ...


@runtime_checkable
class Described(Protocol):
    """A tappable module that knows what its layers give without running."""

    def describe(self, layer: str) -> str:
        """A layer with the shape of what it gives, for a list that people read."""
        ...


class TapRunner:
    """Runs a module up to its last tap and keeps what the taps put out, pooled.

    A layer that runs several times in one pass gives its last output. The first pass runs to the end and counts the calls;
    later ones stop at the last of them, unless they are recorded (`torch.export` drops the rest by itself). The hooks live only
    during a pass, so the module stays as it was.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str], pooling: Pooling) -> None:
        self._module = module
        self._tappable = module if isinstance(module, Tappable) else None
        self._taps = {tap: find_layer(module, tap) for tap in taps}
        self._pooling = pooling
        self._calls_per_pass: int | None = None

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Run the network up to its last tap, and pool what the taps put out.

        Returns:
            For each tap its pooled float32 features, B rows.

        Raises:
            BackboneError: a tap does not run, gives no single tensor or not one row an image, or cannot be pooled so.
        """
        if self._tappable is not None:
            outputs = self._tappable.outputs(images_BCHW, list(self._taps))
            return {tap: self._pool(tap, outputs[tap], images_BCHW.shape[0]) for tap in self._taps}
        features: dict[str, Tensor] = {}
        calls = 0
        images = images_BCHW.shape[0]  # not its len(), which fixes the batch size of what is exported

        def keep(tap: str, value: object) -> None:
            nonlocal calls
            features[tap] = self._pool(tap, value, images)
            calls += 1
            if calls == self._calls_per_pass and not torch.compiler.is_exporting():
                raise _LastTapReached

        handles = [_hook(layer, partial(keep, tap), tap.endswith(INPUT_SUFFIX)) for tap, layer in self._taps.items()]
        try:
            self._module(images_BCHW)
        except _LastTapReached:
            return features
        finally:
            for handle in handles:
                handle.remove()
        if silent := [tap for tap in self._taps if tap not in features]:
            raise BackboneError(f"layer {', '.join(silent)} does not run when the backbone embeds an image; tap another")
        self._calls_per_pass = calls
        return features

    def _pool(self, tap: str, value: object, images: int) -> Tensor:
        output = _only_tensor(value, tap)
        if output.ndim < 2 or output.shape[0] != images:
            raise BackboneError(
                f"layer {tap} gives {tuple(output.shape)} for {images} images, not one row an image; tap another"
            )
        return self._pooling(tap, output)


def _hook(layer: nn.Module, keep: Callable[[object], None], is_input: bool) -> RemovableHandle:
    def before(_layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        keep((*arguments, *keywords.values()))

    def after(_layer: nn.Module, _arguments: tuple[Any, ...], output: object) -> None:
        keep(output)

    return layer.register_forward_pre_hook(before, with_kwargs=True) if is_input else layer.register_forward_hook(after)


def _only_tensor(value: object, tap: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    parts = list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, (tuple, list)) else []
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) != 1:
        raise BackboneError(
            f"layer {tap} gives a {type(value).__name__} of {len(tensors)} tensors, expected one; tap another layer"
        )
    return tensors[0]


def find_layer(module: nn.Module, tap: str) -> nn.Module:
    """The layer that a tap names.

    Raises:
        BackboneError: there is none; the message names near ones and the direct children.
    """
    if isinstance(module, Tappable):
        names = list(module.layers())
        if tap in names:
            return module
        describe = module.describe if isinstance(module, Described) else str
        shown = ", ".join(describe(name) for name in names[-_SHOWN_LAYERS:])
        parts = f"its {len(names)} layers: {'..., ' if len(names) > _SHOWN_LAYERS else ''}{shown}"
        raise _no_layer(tap, names, parts, describe)
    name = tap.removesuffix(INPUT_SUFFIX)
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if name and name in layers:
        return layers[name]
    children = [child for child, _ in module.named_children()]
    parts = f"its {len(children)} parts: {_shown(children)} (and layers within them, as {next(reversed(layers))})"
    raise _no_layer(name, [layer for layer in layers if layer], parts)


def has_layer(module: nn.Module, tap: str) -> bool:
    """Whether there is a layer of that name."""
    return tap in (module.layers() if isinstance(module, Tappable) else dict(module.named_modules()))


def _shown(names: Sequence[str]) -> str:
    """The first and the last of many names: networks of hundreds of layers on one level have their classifiers at the end."""
    if len(names) <= _SHOWN_LAYERS:
        return ", ".join(names)
    half = _SHOWN_LAYERS // 2
    return ", ".join([*names[:half], "...", *names[-half:]])


def _no_layer(name: str, layers: Sequence[str], parts: str, describe: Callable[[str], str] = str) -> BackboneError:
    near = [describe(layer) for layer in difflib.get_close_matches(name, layers, n=8, cutoff=0.5)]
    return BackboneError(f"the backbone has no layer {name!r}; near ones: {', '.join(near) or 'none'}; {parts}")


@dataclass
class _Watch:
    """What one forward pass shows about the layer before the classifier."""

    is_known: bool  # whether the classifier is; else the last one seen is taken
    recent: deque[_Output]
    classifier: str | None = None
    features: Tensor | None = None
    before: tuple[_Output, ...] = ()

    def keep_input(self, name: str, value: object) -> None:
        features = _only_tensor(value, name)
        if self.is_known and self.features is not None and features[0].numel() <= self.features[0].numel():
            return
        self.classifier, self.features, self.before = name, features.clone(), tuple(self.recent)

    def keep_output(self, name: str, layer: nn.Module, value: object) -> None:
        if isinstance(value, Tensor):
            self.recent.append((name, layer, value.clone()))


def find_default_tap(module: nn.Module, classifiers: Sequence[nn.Module] | None, images_BCHW: Tensor) -> str:
    """The penultimate layer, by watching one forward pass.

    The plain name of the last leaf that gives one vector an image and whose values are those that go into the classifier,
    where there is one; else `<classifier>:input`. Without a classifier, the last layer whose output is the network's. Of a
    tappable module its last layer, as no classifier is to be seen.

    Args:
        module: the network.
        classifiers: its classifier's modules, of which the one with the most inputs counts (distilled and multi-branch
            networks have several); empty where it has none; None where it is not known: then the last linear or
            convolution layer that runs.
        images_BCHW: normalised images.

    Raises:
        BackboneError: no layer's output is the network's; one has to be named.
    """
    if isinstance(module, Tappable):
        return module.layers()[-1]
    watch = _Watch(classifiers is not None, deque(maxlen=_WATCHED_OUTPUTS))
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) if classifiers is None else any(layer is part for part in classifiers):
            handles.append(_hook(layer, partial(watch.keep_input, name), is_input=True))
        if name:
            handles.append(_hook(layer, partial(watch.keep_output, name, layer), is_input=False))
    try:
        output = module(images_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    if watch.classifier is not None and watch.features is not None:
        return _last_equal(_vector_leaves(watch.before), watch.features) or watch.classifier + INPUT_SUFFIX
    features = _only_tensor(output, "the last")
    tap = _last_equal(_vector_leaves(watch.recent), features) or _last_equal(watch.recent, features)
    if tap is None:
        raise BackboneError("the backbone has no classifier and its output is no layer's; name the layers to tap (recipe.taps)")
    return tap


def _vector_leaves(outputs: Iterable[_Output]) -> list[_Output]:
    """Those of layers that compute something, hold no others, and give nothing that pooling would change."""
    return [
        (name, layer, output)
        for name, layer, output in outputs
        if not any(layer.children())
        and not isinstance(layer, _PASS_THROUGH)
        and sum(size > 1 for size in output.shape[1:]) <= 1
    ]


def _last_equal(outputs: Iterable[_Output], features: Tensor) -> str | None:
    flat = features.flatten(1)
    equal = [name for name, _, output in outputs if output.ndim > 1 and torch.equal(output.flatten(1), flat)]
    return equal[-1] if equal else None
