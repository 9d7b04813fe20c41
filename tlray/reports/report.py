"""`tlray report`, and the report that any command writes of what it did."""

import json
from collections.abc import Mapping
from typing import Any

from tlray.advice import KIND
from tlray.config import ReportConfig
from tlray.errors import ConfigError, ObjectNotFoundError, TableError
from tlray.lake.place.alias import read_alias
from tlray.lake.place.occupant import occupant_of
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.reports.parts.page import Page, Section, facts, render
from tlray.reports.place import check_place, write

PICTURES = 24
"""How many pictures of each kind there are in the report that a command writes beside its result."""

MAX_ADVICE_BYTES = 64 * 2**20


def report_command(config: ReportConfig) -> dict[str, Any]:
    """Write the report of what is at a place.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: nothing of tlray's is there, or the report cannot be written where it is to be.
    """
    out, uri = check_place(config.out), to_uri(config.uri)
    of, page = _page_of(uri, config)
    size_bytes = write(out, render(page))
    return {"report": out, "of": of, "uri": uri, "size_bytes": size_bytes}


def report_of_result(name: str, result: Mapping[str, Any], place: str) -> None:
    """Write the report of what a command did.

    Args:
        name: of the command.
        result: its JSON object.
        place: URI or path of the file.
    """
    out = check_place(place)
    write(out, render(_page_of_result(name, result)))
    say(f"report: {out}")


def _page_of(uri: str, config: ReportConfig) -> tuple[str, Page]:
    if config.other is not None:
        from tlray.reports.kinds import comparison

        return "comparison", comparison.page_of(Table.open(uri), Table.open(to_uri(config.other)))
    if uri.lower().endswith(".json"):
        from tlray.reports.kinds import advice

        return "advice", advice.page_of(_read_advice(uri), config.pictures)
    kind = _kind_of(uri)
    if kind == "index":
        from tlray.reports.kinds import index

        return kind, index.page_of(uri)
    if kind == "model":
        from tlray.reports.kinds import model

        return kind, model.page_of(uri, config.pictures)
    from tlray.reports.kinds import table

    return "table", table.page_of(Table.open(uri), config.pictures)


def _kind_of(uri: str) -> str:
    if read_alias(uri) is not None:
        return "table"
    found = occupant_of(uri)
    if found is None or found.kind not in ("table", "model", "index"):
        there = f"it holds {found.said}" if found else "nothing is there"
        raise TableError(f"no table, model or index at {uri}: {there}; expected what tlray made, or the .json file of advise")
    return found.kind


def _read_advice(uri: str) -> dict[str, Any]:
    try:
        document = json.loads(open_store(uri).read(uri, max_bytes=MAX_ADVICE_BYTES).data)
    except ObjectNotFoundError as error:
        raise ConfigError(f"no file at {uri}; expected the one that `tlray advise --out` wrote") from error
    except ValueError as error:
        raise ConfigError(f"{uri} is not JSON: {error}; expected the file that `tlray advise --out` wrote") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ConfigError(f"{uri} is not advice; expected the file that `tlray advise --out` wrote")
    return document


def _page_of_result(name: str, result: Mapping[str, Any]) -> Page:
    """The report of what was made where that has one, else the result itself."""
    if name == "advise":
        from tlray.reports.kinds import advice

        return advice.page_of(result, PICTURES)
    is_plan = bool(result.get("dry_run"))
    if name == "train" and not is_plan:
        from tlray.reports.kinds import model

        return model.page_of(str(result["model"]), PICTURES)
    if name == "index" and not is_plan:
        from tlray.reports.kinds import index

        return index.page_of(str(result["index"]))
    if name in ("extract", "predict") and not is_plan:
        from tlray.reports.kinds import table

        return table.page_of(Table.open(str(result["table"])), PICTURES, result)
    if name == "show" and "first" in result:
        from tlray.reports.kinds import comparison

        sides = (Table.open(result[side]["table"], result[side]["version"]) for side in ("first", "second"))
        return comparison.page_of(*sides)
    subtitle = str(next((result[key] for key in ("table", "index", "model") if isinstance(result.get(key), str)), ""))
    return Page(f"tlray {name}", subtitle, [Section("Result", [facts(dict(result))])])
