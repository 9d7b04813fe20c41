"""Whose folder is it? What a place holds, told by its names, so that nothing is written into what belongs to something else."""

import contextlib
import itertools
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from tlray.errors import AccessError, PlaceTakenError, TableError
from tlray.lake.place.alias import read_alias
from tlray.lake.place.lease import LEASE_FOLDER
from tlray.lake.storage.open import open_store, require_writable
from tlray.lake.storage.store import Store
from tlray.lake.storage.uri import join

Kind = Literal["table", "index", "model", "alias", "delta", "lease", "other"]

MODEL_CARD = "model.json"
RECIPE = "recipe.json"
LOG = "_delta_log"
VERSIONS = "versions"

MOST_SHOWN = 100
"""Longer lists of a card (classes, curves, rows of a confusion matrix) are shown as their number."""

_PART_OF_TABLE = re.compile(rf"{LOG}|{LEASE_FOLDER}|{RECIPE}|head-[0-9a-f]{{64}}\.safetensors|status=(ok|failed)")
_CARD_OF_INDEX = re.compile(rf".*/{VERSIONS}/\d{{20}}\.json", re.DOTALL)
_PART_OF_INDEX = re.compile(r"(files|versions)/([a-z]+-[0-9a-f]{64}|\d{20}\.json)")

_HALF_WRITTEN = re.compile(r"/\.tlray-[0-9a-f]{32}\.tmp$")
"""What a local write leaves that was killed, wherever it was."""

_READABLE_NAME = re.compile(r"[A-Za-z0-9._~!$&'()+,;:@/-]*")
"""delta-rs (1.6) percent-encodes most other characters in what it tells its users of a table's files, such as Polars, DuckDB
and pyarrow, who take it as it is and find nothing there; `=` makes a partition of a folder for them, and `*` a pattern."""


@dataclass(frozen=True)
class Occupant:
    """What is already at the place where a table is to be made.

    Attributes:
        kind: `delta` is another program's Delta table, `other` what tlray does not know; `table` and `index` are also what a
            first run leaves that was killed, and `lease` what it leaves before it has written anything.
        said: the same for a message, after "holds".
    """

    kind: Kind
    said: str


def occupant_of(uri: str) -> Occupant | None:
    """What is at a place; None where nothing is, or an empty folder.

    It is told by the first page of names, so it takes a few requests.

    Raises:
        StoreUnfitError: the place is only read.
        AccessError, StorageError: the store refused or failed.
    """
    require_writable(uri)
    store = open_store(uri)
    if store.stat(uri) is not None:
        try:
            found = read_alias(uri)
        except TableError:
            found = None
        return Occupant("alias", f"an alias of {found[0].table}") if found else Occupant("other", "an object")
    folder = uri if uri.endswith("/") else uri + "/"
    page = next(iter(store.list(folder)), None)
    if page is None:
        return None
    names = [name.removeprefix(folder) for name in page["uri"].to_pylist() if not _HALF_WRITTEN.search(name)]
    if not names:
        return None
    return _told_by(names, has_recipe=_has(uri, RECIPE), has_model_card=_has(uri, MODEL_CARD))


def read_card(uri: str, kind: Literal["index", "model"]) -> dict[str, Any]:
    """What a model or the newest version of an index says of itself, as it is stored; lists of many entries as their number.

    Args:
        uri: of the folder.
        kind: of what `occupant_of` found there.

    Raises:
        TableError: it is not JSON.
    """
    card_uri = join(uri, MODEL_CARD)
    if kind == "index":
        folder = join(uri, VERSIONS)
        card_uri = max((name for page in open_store(uri).list(folder) for name in page["uri"].to_pylist()), default=card_uri)
    try:
        document = json.loads(open_store(uri).read(card_uri).data)
    except ValueError as error:
        raise TableError(f"{card_uri} is no card of an index or a model: {error}") from error
    shown: dict[str, Any] = _shortened(document)
    return shown


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) > MOST_SHOWN else [_shortened(each) for each in value]
    return value


def _has(uri: str, name: str) -> bool:
    return open_store(uri).stat(join(uri, name)) is not None


def _told_by(names: Collection[str], *, has_recipe: bool, has_model_card: bool) -> Occupant:
    tops = {name.partition("/")[0] for name in names}
    if tops == {LEASE_FOLDER}:
        return Occupant("lease", "the lease of a run")
    if has_model_card:
        return Occupant("model", "a model")
    if LOG in tops:
        return Occupant("table", "a table") if has_recipe else Occupant("delta", "another program's Delta table")
    if all(_PART_OF_INDEX.fullmatch(name) for name in names):
        return Occupant("index", "an index" if VERSIONS in tops else "an index that is being built")
    if all(_PART_OF_TABLE.fullmatch(top) for top in tops):
        return Occupant("table", "a table that is being made")
    return Occupant("other", f"{len(names)} objects that are not tlray's ({min(names)} ...)")


def require_place(uri: str, wanted: Literal["table", "index", "model"]) -> None:
    """Make sure that a table, index or model may be made at a place, or is there already.

    A model's folder may hold other files, which people put beside it.

    Raises:
        PlaceTakenError: something else is there.
    """
    found = occupant_of(uri)
    if found is None:
        _require_outside(uri, wanted)
        return
    if found.kind in (wanted, "lease") or (wanted == "model" and found.kind == "other"):
        return
    raise PlaceTakenError(f"{uri} holds {found.said}; expected a place of its own for the {wanted}: name another folder")


def _require_outside(uri: str, wanted: str) -> None:
    """Make sure that a new place is below no file, and in no table or index: these delete what they do not know.

    Raises:
        PlaceTakenError: it is.
    """
    store, scheme, path = open_store(uri), *uri.rstrip("/").split("://")
    parents = itertools.accumulate(path.split("/")[:-1], "{}/{}".format)
    for around in (f"{scheme}://{parent}" for parent in parents if parent):
        held = None
        with contextlib.suppress(AccessError):  # what may not be looked into is not ours to judge
            if scheme == "file" and store.stat(around) is not None:
                held = "a file"
            elif next(iter(store.list(join(around, LOG, ""))), None) is not None:
                held = "a table, whose vacuum would delete it"
            elif _holds_cards(store, around):
                held = "an index, which would delete it"
        if held:
            raise PlaceTakenError(
                f"{uri} is inside {around}, {held}; expected a place of its own for the {wanted}: name another folder"
            )


def _holds_cards(store: Store, uri: str) -> bool:
    pages = store.list(join(uri, VERSIONS, ""))
    return any(_CARD_OF_INDEX.fullmatch(name) for page in pages for name in page["uri"].to_pylist())


def require_new_table_place(uri: str) -> None:
    """Make sure that a new table may be made at a place, where other engines can read it, too.

    Raises:
        PlaceTakenError: something else is there.
        TableError: other engines cannot read a table of that name.
    """
    name = uri.partition("://")[2]
    if not _READABLE_NAME.fullmatch(name):
        odd = sorted({character for character in name if not _READABLE_NAME.fullmatch(character)})
        raise TableError(
            f"{uri} has {', '.join(map(repr, odd))} in its name, below which Polars, DuckDB and others cannot read a Delta "
            "table; name a place of plain letters, digits and . _ - for it"
        )
    require_place(uri, "table")
