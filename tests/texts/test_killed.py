"""Twenty thousand sentences, killed in the middle and run again: each is there once, with exactly its own vector."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
from deltalake import DeltaTable

from tests.photos import SHORT_LEASE, frame_of, result_of, tlray
from tests.texts.documents import documents

SENTENCES = 20_000

EAGER = (
    "import sys; from tlray.extraction.commit import committer; "
    "committer.COMMIT_INTERVAL_SECONDS = 0; committer.COMMIT_SHARE = 1e9; committer.HOLD_SECONDS = 0; "
    "from tlray.cli import main; sys.exit(main(sys.argv[1:]))"
)
"""The command, which commits every unit at once, so that there is something to be killed in the middle of."""


def sentences() -> list[str]:
    """Real sentences, and the first ones again, numbered, as often as it takes."""
    found = [part for _, text, _ in documents() for part in re.split(r"(?<=[.;:]) ", text) if len(part) > 20]
    return [f"{text} {number}" if number >= len(found) else text for number, text in enumerate((found * 20)[:SENTENCES])]


def test_a_killed_run_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    pl.DataFrame({"text": sentences()}).write_ndjson(tmp_path / "x.jsonl")

    def arguments(table: str) -> list[str]:
        recipe = ["--recipe.backbone", f"gensim:{folder / 'w.bin'}", "--recipe.precision.storage", "full"]
        limits = ["--max-failed-fraction", "0.2", *SHORT_LEASE]
        source = ["--source.uri", str(tmp_path / "x.jsonl"), "--source.text", "text"]
        return ["extract", "--local", *source, "--table", str(tmp_path / table), *recipe, *limits]

    process = subprocess.Popen(
        [sys.executable, "-c", EAGER, *arguments("t")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = tmp_path / "t" / "_delta_log"
    while not (log / f"{2:020d}.json").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = sum(DeltaTable(tmp_path / "t").get_add_actions(flatten=True)["num_records"].to_pylist())
    assert 0 < done < SENTENCES
    again = result_of(tlray(*arguments("t")))
    assert again["unchanged"] == done and again["new"] == SENTENCES - done
    whole = result_of(tlray(*arguments("reference")))
    assert whole["new"] == SENTENCES
    ours, theirs = (frame_of(tmp_path / name).sort("uri") for name in ("t", "reference"))
    assert ours["uri"].n_unique() == len(ours) == SENTENCES
    for column in ("uri", "etag", "text", "unknown_fraction", "error"):
        assert ours[column].equals(theirs[column], null_equal=True)
    of_vectors = ours["embedding"].is_not_null()
    assert of_vectors.equals(theirs["embedding"].is_not_null())
    pair = [np.array(frame["embedding"].filter(of_vectors).to_list(), np.float32) for frame in (ours, theirs)]
    np.testing.assert_array_equal(*pair)
