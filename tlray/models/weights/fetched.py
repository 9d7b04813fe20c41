"""Files that a fetch brings to this machine: whether one is there, and what small ones of JSON hold."""

import json
from collections.abc import Mapping
from pathlib import Path

from tlray.errors import SourceError, WeightsError
from tlray.models.weights.spec import FetchFile


def find_file(address: str, fetch: FetchFile) -> Path | None:
    """The local path of the file at an address; None where there is none."""
    try:
        path = fetch(address)
    except (FileNotFoundError, SourceError):
        return None
    return path if path.is_file() else None


def read_json(path: Path, where: str) -> Mapping[str, object]:
    """The JSON object that a file holds.

    Args:
        path: of the file.
        where: what it is, for messages.

    Raises:
        WeightsError: it is not JSON, or no object.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{where} is not valid JSON: {error}; fetch the folder again") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{where} holds a JSON {type(document).__name__}, expected an object")
    return document
