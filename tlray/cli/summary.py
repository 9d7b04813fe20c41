"""A command's result in a few lines for people; programs get the JSON object, which has all of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

Result = Mapping[str, Any]

_LABEL_CHARACTERS = 24


def summary(name: str, result: Result) -> str:
    """What a person wants to know first of a result.

    Args:
        name: of the command.
        result: its JSON object; what is not in it is not said.
    """
    return "\n".join(_SUMMARIES.get(name, _everything)(result))


def _everything(result: Result) -> Iterator[str]:
    """The whole result of a command, as YAML."""
    yield yaml.safe_dump(_short(dict(result)), sort_keys=False, allow_unicode=True, width=110).rstrip()


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(inner) for inner in value]
    return value


def _of_run(result: Result) -> Iterator[str]:
    """Summary of a run of extract or predict."""
    plan = _counts(result, ("listed", "new", "changed", "deleted", "unchanged"))
    if result.get("dry_run"):
        yield f"dry run, nothing is written: {plan}"
        rest = {key: value for key, value in result.items() if key not in ("dry_run", "listed", "new", "changed", "deleted")}
        yield from _everything(rest)
        return
    failures = _counts(result.get("failures", {}), ())
    yield f"{result.get('ok', 0):,} images embedded, {result.get('failed', 0):,} failed" + (
        f" ({failures})" if failures else ""
    )
    yield f"source: {plan}"
    if left_out := _counts(result.get("left_out", {}), ()):
        yield f"left out: {left_out}"
    if result.get("unlabelled"):
        yield f"without a label: {result['unlabelled']:,}"
    if "file" in result:
        yield f"file: {result['file']}"
    yield f"table: {result.get('table')}, version {result.get('version')}"
    yield f"time: {_time(result)}"
    if result.get("advice"):
        yield f"speed: {result['advice']}"


def _counts(counts: Result, names: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names or counts if counts.get(name) is not None)


def _time(result: Result) -> str:
    rate = result.get("images_per_second")
    return f"{result.get('seconds', 0):.1f} s" + (f", {rate:.1f} images a second" if rate else "")


def _of_search(result: Result) -> Iterator[str]:
    if "answers" not in result:
        yield from _everything(result)
        return
    for answer in result["answers"]:
        yield f"{answer['query']}"
        for hit in answer["hits"]:
            label = str(hit.get("label") or "-")
            columns = "".join(f"  {name}={value}" for name, value in hit.get("columns", {}).items())
            yield f"  {hit['score']:8.4f}  {label[:_LABEL_CHARACTERS]:<{_LABEL_CHARACTERS}} {hit['uri']}{columns}"
        if not answer["hits"]:
            yield "  nothing found"


def _of_advice(result: Result) -> Iterator[str]:
    if result.get("dry_run"):
        yield from _everything(result)
        return
    yield result["reason"]
    scenario = result["scenario"]
    if scenario["map_says"]:
        yield f"map: {scenario['map_says']} ({scenario['labels_per_class']:,.0f} labels a class)"
    for one in result["strategies"]:
        expected = one["expected_accuracy"]
        yield (
            f"  {expected['value']:.3f} ({expected['low']:.3f} to {expected['high']:.3f})  {one['strategy']:<9} "
            f"{one['candidate']} at {one['layer']}, {one['cost_seconds']:,.0f} s for all"
        )
    floors = result["floors"]
    pixels, majority = floors["pixels_linear"]["value"], floors["majority"]["value"]
    yield f"  {pixels:.3f} a linear model of raw pixels, {majority:.3f} the largest class"
    for one in result["not_tried"]:
        yield f"no result of {one['strategy']} of {one['candidate']}: {one['reason']}"
    data = result["data"]
    yield (
        f"data: {data['suspected_labels']['count']:,} labels that are probably wrong, {data['near_duplicates']['images']:,} "
        f"near-duplicates, classes of {min(data['class_sizes'].values()):,} to {max(data['class_sizes'].values()):,} images"
    )
    if result["recommendation"]:
        yield "type:"
        for command in result["recommendation"]["commands"]:
            yield f"  {command}"


_SUMMARIES: dict[str, Callable[[Result], Iterator[str]]] = {
    "advise": _of_advice,
    "extract": _of_run,
    "predict": _of_run,
    "search": _of_search,
}
