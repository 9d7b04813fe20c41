"""Taps: finding layers, collecting what they put out in one forward pass, and pooling it to one vector an image.

Shape legend: B images, C channels, H height, W width, N tokens.
"""

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.models import SwinTransformer, VisionTransformer

from tlray.errors import BackboneError
from tlray.recipe import Pool

INPUT_SUFFIX = ":input"
"""`<layer>:input` taps what goes into a layer."""

GEM_POWER = 3.0
GEM_FLOOR = 1e-6
"""Generalised mean: p = 3 is where Radenovic et al. start (Fine-tuning CNN image retrieval, 2018, arXiv 1711.02512); the floor
is their published code's."""

_PASS_THROUGH = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)

_WATCHED_OUTPUTS = 16
"""Outputs kept while the classifier is looked for; the penultimate layer is one of the last few before it."""

_Output = tuple[str, nn.Module, Tensor]


class _LastTapReached(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    pass


@dataclass(frozen=True)
class Pooling:
    """From what a layer puts out to one tensor an image.

    Attributes:
        pool: the recipe's.
        input_height: of the network's input, in pixels; tells the spatial dimensions of a map.
        input_width: likewise.
        prefix_tokens: how many tokens (class, registers) come before those of the patches.
        has_class_token: whether the first of them is a class token.
        is_nhwc: the layout of a map whose three sizes are equal.
    """

    pool: Pool
    input_height: int
    input_width: int
    prefix_tokens: int
    has_class_token: bool
    is_nhwc: bool

    @classmethod
    def of(cls, module: nn.Module, pool: Pool, crop: tuple[int, int]) -> "Pooling":
        """For a torchvision or timm model whose input is `crop` (height, width) pixels."""
        prefix_tokens = int(getattr(module, "num_prefix_tokens", isinstance(module, VisionTransformer)))
        has_class_token = prefix_tokens > 0 and bool(getattr(module, "has_class_token", True))
        is_nhwc = isinstance(module, SwinTransformer) or str(getattr(module, "output_fmt", "NCHW")) == "NHWC"
        return cls(pool, *crop, prefix_tokens, has_class_token, is_nhwc)

    def __call__(self, tap: str, features: Tensor) -> Tensor:
        """Pool in fp32.

        Args:
            tap: for messages.
            features: what the layer put out: a map (BCHW or BHWC), tokens (BNC), vectors (BC), or anything where
                nothing is pooled.

        Returns:
            A float32 tensor of B rows that shares no memory with `features`, so that a later in-place layer cannot change it.

        Raises:
            BackboneError: the pooling does not fit the shape.
        """
        if self.pool in ("flatten", "none") or features.ndim == 2:
            return features.to(torch.float32, copy=True)
        if features.ndim == 3:
            return self._pool_tokens(tap, features.float())
        if features.ndim == 4 and self.pool != "cls":
            return self._reduce(features.float(), self._spatial_dims(tap, features))
        raise BackboneError(
            f"pool {self.pool} does not fit layer {tap}, which gives {tuple(features.shape[1:])} an image; "
            "cls needs a sequence with a class token, the others a map, a sequence or a vector: use flatten, or another layer"
        )

    def _pool_tokens(self, tap: str, tokens_BNC: Tensor) -> Tensor:
        prefix = self._prefix_of(tokens_BNC.shape[1])
        if self.pool != "cls":
            return self._reduce(tokens_BNC[:, prefix:], (1,))
        if not (prefix and self.has_class_token):
            raise BackboneError(f"pool cls: layer {tap} has no class token; use avg, max or gem, or another layer")
        return tokens_BNC[:, 0].clone()

    def _prefix_of(self, tokens: int) -> int:
        """Prefix tokens in a sequence: none where all of its tokens make a grid (a layer before they are added)."""
        if self._is_grid(tokens) and not self._is_grid(tokens - self.prefix_tokens):
            return 0
        return self.prefix_tokens

    def _is_grid(self, tokens: int) -> bool:
        ratio = self.input_height / self.input_width
        rows, columns = round((max(tokens, 0) * ratio) ** 0.5), round((max(tokens, 0) / ratio) ** 0.5)
        return bool(rows * columns == tokens > 0)

    def _spatial_dims(self, tap: str, features: Tensor) -> tuple[int, int]:
        """The two neighbouring dimensions whose ratio is the input's, to within one position."""
        fitting = [dims for dims in ((2, 3), (1, 2)) if self._is_spatial(features.shape[dims[0]], features.shape[dims[1]])]
        if not fitting:
            raise BackboneError(
                f"layer {tap} gives {tuple(features.shape[1:])} an image: no two neighbouring dimensions have the ratio of the "
                f"{self.input_height}x{self.input_width} input, so it is not a map; use pool flatten, or another layer"
            )
        return (1, 2) if self.is_nhwc and len(fitting) == 2 else fitting[0]

    def _is_spatial(self, rows: int, columns: int) -> bool:
        return abs(rows * self.input_width - columns * self.input_height) < min(self.input_height, self.input_width)

    def _reduce(self, features: Tensor, dims: tuple[int, ...]) -> Tensor:
        if self.pool == "max":
            return features.amax(dims)
        if self.pool == "gem":
            return features.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean(dims).pow(1 / GEM_POWER)
        return features.mean(dims)


class TapRunner:
    """Runs a module up to its last tap and keeps what the taps put out, pooled.

    A layer that runs several times in one pass gives its last output. The first pass runs to the end and counts the calls;
    later ones stop at the last of them, unless they are recorded (`torch.export` drops the rest by itself). The hooks live only
    during a pass, so the module stays as it was.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str], pooling: Pooling) -> None:
        self._module = module
        self._taps = {tap: find_layer(module, tap) for tap in taps}
        self._pooling = pooling
        self._calls_per_pass: int | None = None

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """One forward pass.

        Returns:
            For each tap its pooled float32 features, B rows.

        Raises:
            BackboneError: a tap does not run, gives no single tensor or not one row an image, or cannot be pooled so.
        """
        features: dict[str, Tensor] = {}
        calls = 0

        def keep(tap: str, value: object) -> None:
            nonlocal calls
            output = _only_tensor(value, tap)
            if output.ndim < 2 or output.shape[0] != images_BCHW.shape[0]:
                raise BackboneError(
                    f"layer {tap} gives {tuple(output.shape)} for {len(images_BCHW)} images, not one row an image; tap another"
                )
            features[tap] = self._pooling(tap, output)
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
    name = tap.removesuffix(INPUT_SUFFIX)
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if name and name in layers:
        return layers[name]
    near = difflib.get_close_matches(name, [layer for layer in layers if layer], n=8, cutoff=0.5)
    children = [child for child, _ in module.named_children()]
    raise BackboneError(
        f"the backbone has no layer {name!r}; near ones: {', '.join(near) or 'none'}; "
        f"its {len(children)} parts: {', '.join(children)} (and layers within them, as {next(reversed(layers))})"
    )


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
    where there is one; else `<classifier>:input`. Without a classifier, the last layer whose output is the network's.

    Args:
        module: the network.
        classifiers: its classifier's modules, of which the one with the most inputs counts (distilled and multi-branch
            networks have several); empty where it has none; None where it is not known: then the last linear or
            convolution layer that runs.
        images_BCHW: normalised images.

    Raises:
        BackboneError: no layer's output is the network's; one has to be named.
    """
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
