"""A model's files as the Hugging Face hub lays them out: in a folder, on disk or in an object store, or on the hub itself."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from tlray.errors import BackboneError, WeightsError, first_line
from tlray.models.weights.fetched import find_file, read_json
from tlray.models.weights.spec import FetchFile

CONFIG = "config.json"

_HUB_ADDRESS = "hf://"

_HUB_ERRORS = (*HfHubHTTPError.__bases__, HFValidationError)
"""What a download raises: the errors of huggingface_hub's HTTP client, which is not the same in all of its versions, those of
the operating system, and that of a name that the hub cannot have."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are: in a folder, or in a repository of the hub.

    Attributes:
        address: of the folder; names of files follow it after a slash.
        weights: how a recipe names them, with the commit where they are on the hub.
        fetch: brings the address of a file to a local path; raises `SourceError` or `FileNotFoundError` where there is none.
    """

    address: str
    weights: str
    fetch: FetchFile

    def find(self, name: str) -> Path | None:
        """The local path of a file; None where there is none of that name."""
        return find_file(f"{self.address}/{name}", self.fetch)

    def config(self) -> Mapping[str, object]:
        """The model's configuration, as `config.json` holds it.

        Raises:
            WeightsError: there is none, or it is not a JSON object.
        """
        path = self.find(CONFIG)
        if path is None:
            raise WeightsError(
                f"{self.weights} has no {CONFIG}, which says what network it is; give a folder as the Hugging Face hub has it"
            )
        return read_json(path, f"{self.weights}: {CONFIG}")

    @contextmanager
    def copied(self, names: Sequence[str]) -> Iterator[Path]:
        """A temporary folder with copies of those of some small files that there are, for readers that want a folder."""
        with tempfile.TemporaryDirectory(prefix="tlray-hf-") as folder:
            for name in names:
                if (path := self.find(name)) is not None:
                    shutil.copyfile(path, Path(folder) / name)
            yield Path(folder)


def folder_files(location: str, fetch: FetchFile) -> ModelFiles:
    """The files in a folder on disk or in an object store."""
    return ModelFiles(location.rstrip("/"), location, fetch)


def hub_files(name: str) -> ModelFiles:
    """The files of a repository of the hub, all of one commit.

    A file is downloaded when it is asked for, once a machine: huggingface_hub keeps it in its cache, which is used without a
    network, too, where the commit is known. Its settings (a token, another cache) are its own.

    Args:
        name: `<organisation>/<name>`, `@` and a branch, tag or commit may follow; default the newest commit.

    Raises:
        BackboneError: the hub has no such repository, or it cannot be reached.
    """
    repository, _, revision = name.partition("@")
    config = _download(repository, CONFIG, revision or None)
    if config is None:
        raise BackboneError(f"hf:{name} has no {CONFIG}, so it is no model of transformers")
    commit = config.parent.name  # of the cache: .../snapshots/<commit>/config.json
    address = f"{_HUB_ADDRESS}{repository}@{commit}"

    def fetch(file: str) -> Path:
        path = _download(repository, file.removeprefix(f"{address}/"), commit) if file != address else None
        if path is None:
            raise FileNotFoundError(file)
        return path

    return ModelFiles(address, f"hf:{repository}@{commit}", fetch)


def _download(repository: str, name: str, revision: str | None) -> Path | None:
    """A file's local path; None where the repository has no such file, or this machine works offline and has none."""
    where = f"hf:{repository}{f'@{revision}' if revision else ''}"
    cached = try_to_load_from_cache(repository, name, revision=revision) if revision else None
    if cached is not None:
        return Path(cached) if isinstance(cached, str) else None
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:
        if revision and isinstance(error.__cause__, OfflineModeIsEnabled):
            return None
        raise BackboneError(
            f"{where} could not be had: {name} is not in this machine's cache, and the hub cannot be reached "
            f"({first_line(error.__cause__ or error)}); check the network, or give a copy of the repository as a folder "
            "(hf:./folder)"
        ) from error
    except EntryNotFoundError:
        return None
    except _HUB_ERRORS as error:
        local = f"; a folder of this machine is written hf:./{repository}" if Path(repository).exists() else ""
        raise BackboneError(
            f"{where} could not be had from the hub: {first_line(error)}; check the name and the access, or give a copy of the "
            f"repository as a folder (hf:./folder){local}"
        ) from error
