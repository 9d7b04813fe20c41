"""The report of a table: what the run did, what failed, what the vectors are like, what the pictures are like.

Shape legend: N rows of a sample, D length of a vector.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.lake.table import maintenance
from tlray.lake.table.parts import read_part, vectors_of
from tlray.lake.table.table import Table
from tlray.progress import readable_seconds, readable_size
from tlray.recipe import Recipe
from tlray.reports.parts import charts
from tlray.reports.parts.page import Block, Chart, Facts, Gallery, Page, Rows, Section, Text, facts, number
from tlray.reports.parts.pictures import Pictures, Wish, name_of
from tlray.scoring import image_oddities, near_duplicate_groups, nearest_neighbours

SAMPLE_ROWS = 4000
"""Rows whose vectors are looked at: all pairs of them are compared."""

SAMPLE_PARTS = 16
"""Parts that these rows are read from: a large table has thousands, of which each takes a request and some seconds."""

HISTORY = 2000
"""Commits of the log that are looked through for those of the last run."""

SAME_COSINE = 0.9999
"""The least cosine of vectors whose images are copies: storage at half precision alone differs by less."""

CONSTANT = 1e-6
"""Standard deviation, relative to the mean one of all dimensions, below which a dimension says nothing."""

EXAMPLES = 3
"""Images that are named for each code of failure."""

_QUERIES = 4
_LOOKED_AT = 200


def page_of(table: Table, pictures: int, result: Mapping[str, Any] | None = None) -> Page:
    """The report of a table of embeddings or predictions.

    Args:
        table: at the version that is shown.
        pictures: how many of each kind at most.
        result: of the command that has just worked on it, where there was one.
    """
    about, of_images = maintenance.show(table), isinstance(table.recipe_file.recipe, Recipe)
    sample = _sample(table)
    made = Pictures()
    sections = [
        Section("The run", list(_run(table, about, result))),
        Section("What failed", list(_failures(table, about))),
    ]
    sections += [Section(_of(table, "Vectors", column), list(_vectors(sample, column))) for column in table.columns]
    if table.columns and of_images:
        sections.append(
            Section("Some images and their nearest", list(_neighbours(sample.rows, table.columns[0], pictures, made)))
        )
    if of_images:
        sections.append(Section("The images themselves", list(_health(sample.rows, pictures, made))))
    sections.append(Section("What made it", [facts(about["recipe"])]))
    headline = [
        ("rows", number(about["ok"] + about["failed"])),
        ("failed", number(about["failed"])),
        ("size", readable_size(about["size_bytes"])),
        ("version", number(about["version"])),
    ]
    run = result or about["last_run"]
    if run and run.get("seconds"):
        headline.append(("time of the run", readable_seconds(run["seconds"])))
    return Page(f"Table: {about['recipe']['backbone']}", table.uri, sections, headline)


def _of(table: Table, what: str, column: str) -> str:
    return what if len(table.columns) == 1 else f"{what}: {column}"


@dataclass(frozen=True)
class _Sample:
    """Some good rows of a table.

    Attributes:
        rows: with their vectors.
        parts: how many parts they are of.
        of: how many parts of good rows there are.
    """

    rows: pa.Table
    parts: int
    of: int


def _sample(table: Table) -> _Sample:
    """About `SAMPLE_ROWS` good rows of at most `SAMPLE_PARTS` parts; of a part with more rows more likely, and more of them."""
    parts = [part for part in table.parts("ok") if part.rows]
    own = ["width", "height"] if isinstance(table.recipe_file.recipe, Recipe) else []
    columns = ["uri", "etag", "label", *own, *table.columns]
    if not parts:
        return _Sample(table.read(columns).slice(0, 0), 0, 0)
    generator = np.random.default_rng(0)
    rows_P = np.array([part.rows for part in parts], np.float64)
    chosen = np.sort(generator.choice(len(parts), min(SAMPLE_PARTS, len(parts)), replace=False, p=rows_P / rows_P.sum()))
    share, taken = min(1.0, SAMPLE_ROWS / rows_P[chosen].sum()), []
    for part in (parts[at] for at in chosen):
        rows = read_part(table.uri, part.path, columns)
        count = max(1, round(part.rows * share))
        taken.append(rows.take(pa.array(np.sort(generator.permutation(len(rows))[:count]))))
    return _Sample(pa.concat_tables(taken), len(chosen), len(parts))


def _run(table: Table, about: Mapping[str, Any], result: Mapping[str, Any] | None) -> Iterator[Block]:
    run = result if result and result.get("stages") else about["last_run"]
    if result:
        names = (
            "listed",
            "new",
            "changed",
            "deleted",
            "unchanged",
            "ok",
            "failed",
            "unlabelled",
            "images_per_second",
            "seconds",
        )
        yield Facts([(name.replace("_", " "), number(result[name])) for name in names if name in result])
    if not run:
        yield Text("The log does not go back to a run that embedded something.")
        return
    if run.get("advice"):
        yield Text(f"{run['advice'][0].upper()}{run['advice'][1:]}.")
    if run.get("stages"):
        rows = [
            (stage, one["seconds"], f"{one['seconds']:.1f} s" + (f", {one['share']:.0%}" if "share" in one else ""))
            for stage, one in run["stages"].items()
        ]
        what = "Seconds of each stage, summed over workers, and the share of its resource's time"
        yield Chart(charts.bars(rows, what=what), f"{what}; what bounds the run is {run['bottleneck']}.")
    points = _rates(table)
    if len(points) >= 2:
        line = charts.Line("images a second", [at for at, _ in points], [rate for _, rate in points])
        yield Chart(
            charts.lines([line], x="seconds since the run began", y="images a second"),
            "Rate between commits of the last run: level means that nothing grew with what was done.",
        )


def _rates(table: Table) -> list[tuple[float, float]]:
    """At each commit of the last run, the seconds since it began and the images a second since the commit before."""
    said = [commit["tlray"] for commit in table.log.history(HISTORY) if isinstance(commit.get("tlray"), dict)]
    said = [one for one in said if "run" in one and "images" in one and "seconds" in one]
    run = [one for one in said if one["run"] == said[0]["run"]][::-1]
    points, images, seconds = [], 0, 0.0
    for one in run:
        if one["images"] > images and one["seconds"] > seconds:
            points.append((one["seconds"], (one["images"] - images) / (one["seconds"] - seconds)))
            images, seconds = one["images"], one["seconds"]
    return points


def _failures(table: Table, about: Mapping[str, Any]) -> Iterator[Block]:
    if not about["failed"]:
        yield Text("Every image could be used.", "good")
        return
    most = about["failed"]
    rows = [(str(code), count, f"{count:,} ({count / most:.0%})") for code, count in about["failures"].items()]
    yield Chart(charts.bars(rows, what="Failed images by code"), "Failed images by code.")
    shown: dict[str, list[str]] = {}
    for part in table.parts("failed"):
        if all(len(shown.get(str(code), ())) >= min(count, EXAMPLES) for code, count in about["failures"].items()):
            break
        for row in read_part(table.uri, part.path, ["uri", "error"]).to_pylist():
            if len(shown.setdefault(row["error"], [])) < EXAMPLES:
                shown[row["error"]].append(row["uri"])
    yield Rows(["code", "for example"], [[code, name] for code, names in shown.items() for name in names])


def _vectors(sample: _Sample, column: str) -> Iterator[Block]:
    if not len(sample.rows):
        yield Text("There is no vector.", "bad")
        return
    features_ND = vectors_of(sample.rows[column])
    spread_D, norms_N = features_ND.std(axis=0), np.linalg.norm(features_ND, axis=1)
    constant = int((spread_D <= CONSTANT * max(float(spread_D.mean()), 1e-30)).sum())
    dead = int((~features_ND.any(axis=0)).sum())
    share_D = np.sort(spread_D.astype(np.float64) ** 2)[::-1]
    half = int(np.searchsorted(np.cumsum(share_D) / max(share_D.sum(), 1e-30), 0.5)) + 1
    group_N = near_duplicate_groups(features_ND, SAME_COSINE)
    _, sizes = np.unique(group_N, return_counts=True)
    yield Facts(
        [
            ("rows looked at", number(len(features_ND))),
            ("parts that they are from", f"{sample.parts:,} of {sample.of:,}"),
            ("dimensions", number(features_ND.shape[1])),
            ("always zero", number(dead)),
            ("constant", number(constant)),
            ("half of the variance is in", f"{half:,} dimensions"),
            ("length of a vector", f"{norms_N.mean():.4g}, from {norms_N.min():.4g} to {norms_N.max():.4g}"),
            (
                "copies",
                f"{int(sizes[sizes > 1].sum()):,} rows in {int((sizes > 1).sum()):,} groups (cosine {SAME_COSINE} or more)",
            ),
        ]
    )
    if constant > features_ND.shape[1] / 2:
        yield Text(
            "More than half of the dimensions say nothing; are the weights loaded, and is the layer one that is used?", "bad"
        )


def _neighbours(sample: pa.Table, column: str, pictures: int, made: Pictures) -> Iterator[Block]:
    if len(sample) < 3 or not pictures:
        yield Text("Too few rows to show any.")
        return
    features_ND = vectors_of(sample[column])
    queries = np.random.default_rng(0).permutation(len(sample))[:_QUERIES]
    across = min(max(2, pictures // _QUERIES), 6, len(sample) - 1)
    indexes, cosines = nearest_neighbours(features_ND[queries], features_ND, across + 1)
    uris, etags, labels = (sample[name].to_pylist() for name in ("uri", "etag", "label"))
    for query, at, near in zip(queries.tolist(), indexes.tolist(), cosines.tolist(), strict=True):
        others = [(row, cosine) for row, cosine in zip(at, near, strict=True) if row != query][:across]
        wishes = [Wish(uris[query], etags[query], labels[query] or name_of(uris[query]), "good")]
        wishes += [Wish(uris[row], etags[row], f"{labels[row] or name_of(uris[row])} {cosine:.3f}") for row, cosine in others]
        yield Gallery(made.shots(wishes))


def _health(sample: pa.Table, pictures: int, made: Pictures) -> Iterator[Block]:
    chosen = sample.take(pa.array(np.random.default_rng(1).permutation(len(sample))[:_LOOKED_AT])).to_pylist()
    counts, examples, read = Counter[str](), dict[str, list[Wish]](), 0
    keys = [(row["uri"], row["etag"]) for row in chosen if pictures]
    for row, pixels_HWC in zip(chosen, made.pixels(keys), strict=False):  # none are read where no pictures are wanted
        if pixels_HWC is None:
            continue
        read += 1
        for code in image_oddities(pixels_HWC, row["width"] or 0, row["height"] or 0):
            counts[code] += 1
            examples.setdefault(code, []).append(Wish(row["uri"], row["etag"], name_of(row["uri"])))
    if not read:
        yield Text("No image was looked at: they cannot be read any more, or no pictures were asked for.")
        return
    sizes = [(row["width"], row["height"]) for row in chosen if row["width"]]
    widths, heights = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    yield Facts(
        [
            ("images looked at", number(read)),
            ("width", f"{min(widths):,} to {max(widths):,} pixels, {int(np.median(widths)):,} in the middle"),
            ("height", f"{min(heights):,} to {max(heights):,} pixels, {int(np.median(heights)):,} in the middle"),
        ]
    )
    if not counts:
        yield Text("None is dark, light, flat, blurry, grey, small or long.", "good")
        return
    rows = [(code, float(count), f"{count:,} of {read:,}") for code, count in counts.most_common()]
    yield Chart(
        charts.bars(rows, what="Odd images by what is odd"), "What is odd, by rules of thumb; look before you drop any."
    )
    for code, _ in counts.most_common():
        yield Gallery(made.shots(examples[code][: max(3, pictures // 6)]), code)
