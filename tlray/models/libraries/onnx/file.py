"""An ONNX file: what it says, the files that its tensors lie in, and one hash of all of it."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from tlray.errors import BackboneError, WeightsError
from tlray.models.weights.fetched import find_file
from tlray.models.weights.files import package_file
from tlray.models.weights.foreign import advice
from tlray.models.weights.spec import FetchFile

LEAST_OPSET = 7
"""The first that onnxruntime promises to compute as it is defined (its documentation of compatibility)."""

_PACKAGE = "package:"
_SUFFIXES = (".onnx",)


@dataclass(frozen=True)
class OnnxFile:
    """A model's file as it was read, its tensors' files not.

    Attributes:
        where: what the user wrote, for messages.
        model: as the file has it; tensors in other files stay there.
        folder: where these lie, by the names that the model gives them.
        sha256: of the file; where there are others, of the lines `<sha256>  <name>` of all of them, the model's name empty.
    """

    where: str
    model: onnx.ModelProto
    folder: Path
    sha256: str

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return {entry.key: entry.value for entry in self.model.metadata_props}


def read_file(where: str, fetch: FetchFile) -> OnnxFile:
    """Read a model's file, and hash it with the files of its tensors.

    Args:
        where: URI or path of the file, or `package:<name>/<file>`.
        fetch: brings a URI to a local path.

    Raises:
        WeightsError: there is no such file, or one that its tensors lie in is missing or too short.
        BackboneError: it is no ONNX model, or one of an opset before LEAST_OPSET.
    """
    location = where
    if where.startswith(_PACKAGE):
        location = str(package_file(where.removeprefix(_PACKAGE), _SUFFIXES))
    if (foreign := advice(location, fetch)) is not None:
        raise BackboneError(f"{where} is not an ONNX model: {foreign}")
    path = find_file(location, fetch)
    if path is None:
        raise WeightsError(f"there is no file {where}; expected an ONNX model: check the address")
    model = _parse(path, where)
    tensors = _external_data(model)
    files = {name: _external(location, name, where, fetch) for name in sorted({info.location for info in tensors})}
    for info in tensors:
        _check_length(info, files[info.location], where)
    digest = _sha256(path)
    if files:
        lines = [f"{digest}  \n", *(f"{_sha256(each)}  {name}\n" for name, each in files.items())]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return OnnxFile(where, model, _one_folder(path, files, digest), digest)


def _parse(path: Path, where: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError:
        model = onnx.ModelProto()
    if not (model.ir_version and model.graph.node and model.opset_import):
        raise BackboneError(f"{where} is not an ONNX model, or not all of one; expected a file that an exporter to ONNX wrote")
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=LEAST_OPSET)
    if opset < LEAST_OPSET:
        raise BackboneError(
            f"{where} is of opset {opset}, expected {LEAST_OPSET} or later: convert it, as "
            "onnx.save(onnx.version_converter.convert_version(onnx.load('old.onnx'), 13), 'new.onnx')"
        )
    return model


def tensors_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """All tensors within nodes and the graphs within them."""
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer
                yield from tensors_of(graph.node)


def _external_data(model: onnx.ModelProto) -> list[ExternalDataInfo]:
    tensors = [*model.graph.initializer, *tensors_of(model.graph.node)]
    for function in model.functions:
        tensors += tensors_of(function.node)
    return [ExternalDataInfo(tensor) for tensor in tensors if uses_external_data(tensor)]


def _external(location: str, name: str, where: str, fetch: FetchFile) -> Path:
    """The local path of a file that tensors lie in, which is beside the model or in a folder there."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
        raise WeightsError(f"{where} names a file outside of its folder: {name!r}; export it again, into one folder")
    folder, slash, _ = location.rpartition("/")
    path = find_file(f"{folder}{slash}{name}", fetch)
    if path is None:
        raise WeightsError(f"{where} keeps tensors in {name}, which is not there; bring it to the folder of the model")
    return path


def _check_length(info: ExternalDataInfo, path: Path, where: str) -> None:
    needed, size = int(info.offset or 0) + int(info.length or 0), path.stat().st_size
    if size < needed:
        raise WeightsError(
            f"{where} keeps tensors in {info.location}, which has {size} bytes, expected {needed}; bring all of it there"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_folder(path: Path, files: Mapping[str, Path], key: str) -> Path:
    """A folder that has the files by their names; made where they were fetched each for itself.

    Hard links, as onnxruntime follows none of the other kind out of the folder; copies where there can be none.
    """
    if all(path.parent / name == found for name, found in files.items()):
        return path.parent
    folder = Path(tempfile.gettempdir()) / f"tlray-{os.getuid()}" / f"onnx-{key[:32]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, found in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        try:
            os.link(found, target)
        except OSError:
            _copy(found, target)
    return folder


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that nobody sees a part of it."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file, source.open("rb") as data:
        shutil.copyfileobj(data, file)
    Path(file.name).replace(target)
