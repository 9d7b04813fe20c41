"""One of each thing that reports are of: a table with failures, a model, an index, advice, and a second table."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.advice.pictures import CANDIDATES, write_stripes
from tests.photos import RECIPE, result_of, tlray

FAILURES = {"empty": 2, "truncated": 1}
LONG = "a label that is longer than anything that one would put into a picture's caption or a chart"


class Things(NamedTuple):
    """Where everything is; `advise` is what the command said."""

    folder: Path
    table: Path
    other: Path
    model: Path
    index: Path
    advice: Path
    advise: dict


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    folder = tmp_path_factory.mktemp("reports")
    images = folder / "images"
    write_stripes(images, 24, classes=4)
    (images / "kind-0").rename(images / LONG)
    good = (images / LONG / "000.png").read_bytes()
    for number in range(FAILURES["empty"]):
        (images / "kind-1" / f"empty-{number}.png").write_bytes(b"")
    (images / "kind-1" / "<b>half & half.png").write_bytes(good[: len(good) // 2])
    things = Things(folder, *(folder / name for name in ("table", "other", "model", "index", "advice.json")), {})
    small = [*RECIPE, "--local", "--labels", "folder", "--max-failed-fraction", "0.5"]
    result_of(tlray("extract", images, things.table, *small, "--report", folder / "extract.html"))
    result_of(tlray("extract", images, things.other, *small, "--resize", "40", "--crop", "40", "--exclude", "kind-3/"))
    result_of(tlray("train", things.table, things.model, "--epochs", "20", "--report", folder / "train.html"))
    result_of(tlray("index", things.table, things.index, "--report", folder / "index.html"))
    wanted = [
        "--candidates",
        *CANDIDATES,
        "--resize",
        "32",
        "--crop",
        "32",
        "--layers",
        "3",
        "--epochs",
        "1",
        "--minutes",
        "30",
    ]
    some = ["--out", things.advice, "--report", folder / "advise.html"]
    advise = result_of(tlray("advise", images, *wanted, "--max-failed-fraction", "0.5", *some))
    return things._replace(advise=advise)
