"""Indexes that version 0.1 made: format 4, each row a vector of its own in FAISS, all-zero ones among them."""

import hashlib
import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.search.tables import Bench, exact, rows_for, vectors_for
from tlray.errors import ConfigError, IndexCorruptError
from tlray.lake.table.parts import vector_column
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter
from tlray.search.versions.card import Card, read_card

CARD = {
    "format": 4,
    "version": 2,
    "created": "2026-11-30T10:17:58+00:00",
    "table": "file:///data/table",
    "table_id": "96e658b3-81b3-4c4d-949e-5aecef281a20",
    "table_version": 2,
    "recipe_id": "3ccac72ba234d0504855f7085fa64da9d67e4839dade6aa7f300bc4dade4dddc",
    "column": "embedding",
    "dimensions": 32,
    "metric": "cosine",
    "factory": "HNSW16",
    "reasons": ["named by the user"],
    "rows": 2040,
    "dead": 10,
    "next_id": 2050,
    "base_next_id": 2000,
    "built": {"rows": 2000, "recall_at_10": 0.9425, "outlier_nearness": None},
    "recall_target": 0.9,
    "parameters": {"nprobe": None, "ef_search": 48, "rerank": 1},
    "quality": {
        "recall_at_10": 0.9425,
        "standard_error": 0.0125,
        "queries": 200,
        "milliseconds_single": 0.0315,
        "milliseconds_batch": 0.0907,
        "reconstruction_error": 0.0,
    },
    "unreached": [2003],
    "measured_version": 1,
    "seconds": {"compare": 0.01},
    "files": {"faiss": {"name": "faiss-" + 64 * "0", "sha256": 64 * "0", "size_bytes": 5}},
    "made_with": {"tlray": "0.1.0", "faiss": "1.15.0", "numpy": "2.4.0"},
}
"""A card as version 0.1.0 wrote it."""


def written(document: dict) -> bytes:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(document | {"sha256": digest}, indent=1).encode()


def test_a_card_of_version_0_1_is_read() -> None:
    card = Card.from_json(written(CARD), "file:///card")
    assert (card.rows, card.nodes, card.zero_rows, card.dead) == (2040, 2040, 0, 10)
    assert (card.next_id, card.next_node, card.base_next_node, card.zeros_are_apart) == (2050, 2050, 2000, False)
    assert card.unreached == (2003,) and card.parameters.ef_search == 48
    again = Card.from_json(card.to_json(), "file:///card")
    assert again == card and again.format == 5


def test_a_key_that_was_added_since_takes_its_default_and_no_byte_may_change() -> None:
    document = Card.from_json(written(CARD), "").model_dump(mode="json")
    del document["zero_rows"]
    assert Card.from_json(written(document), "").zero_rows == 0
    for data in (written(CARD).replace(b"0.9425", b"0.9525"), written(CARD)[:-1], b" " + written(CARD), b"{}", b"[]", b"\xff"):
        with pytest.raises(IndexCorruptError):
            Card.from_json(data, "file:///card")
    with pytest.raises(IndexCorruptError, match="surprise"):
        Card.from_json(written(CARD | {"surprise": 1}), "file:///card")
    with pytest.raises(ConfigError, match=r"format 6, made with .*0\.1\.0"):
        Card.from_json(written(CARD | {"format": 6}), "file:///card")


def as_version_0_1_made_it(bench: Bench) -> None:
    """Writes the newest version of an index of distinct vectors anew, in version 0.1's format."""
    card = read_card(f"file://{bench.index_path}")
    document = json.loads(card.to_json())
    rows_file = bench.index_path / "files" / card.files["rows"].name
    table = pq.read_table(rows_file).drop_columns(["node", "key"])
    pq.write_table(table, rows_file, compression="zstd", use_dictionary=["label", "part"])
    digest = hashlib.sha256(rows_file.read_bytes()).hexdigest()
    rows_file.rename(rows_file.with_name(f"rows-{digest}"))
    document["files"]["rows"] = {"name": f"rows-{digest}", "sha256": digest, "size_bytes": rows_file.parent.stat().st_size}
    document["files"]["rows"]["size_bytes"] = (rows_file.parent / f"rows-{digest}").stat().st_size
    for key in ("sha256", "nodes", "zero_rows", "next_node", "zeros_are_apart"):
        del document[key]
    document = document | {"format": 4, "base_next_id": document.pop("base_next_node")}
    (bench.index_path / "versions" / f"{card.version:020d}.json").write_bytes(written(document))


@pytest.mark.parametrize(
    ("factory", "rerank"), [("Flat", "auto"), ("HNSW16", "auto"), ("IVF16,Flat", "auto"), ("IVF8,SQ4", "always")]
)
def test_an_index_of_version_0_1_is_searched_and_updated(factory: str, rerank: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, *_ = bench.fill(2000, part_rows=200)
    config = {"factory": factory, "rerank": rerank}
    bench.index(**config)
    bench.commit([rows_for([*range(10, 200), *range(5000, 5010)])], [first])
    bench.index(**config)
    as_version_0_1_made_it(bench)
    queries_BD = vectors_for(range(100_000, 100_100), "query")

    def recall() -> float:
        uris, vectors_ND = bench.all()
        wanted_BK, _ = exact(queries_BD, vectors_ND, 10)
        searcher = Searcher.open(str(bench.index_path))
        assert sorted(searcher.rows.table["uri"].to_pylist()) == sorted(uris)
        found = [{hit["uri"] for hit in hits} for hits in searcher.search(queries_BD, 10).to_lists()]
        return float(np.mean([len(one & {uris[at] for at in row}) / 10 for one, row in zip(found, wanted_BK, strict=True)]))

    assert recall() >= 0.93
    assert bench.index(**config)["action"] == "unchanged"
    copies = rows_for(range(6000, 6010))
    bench.commit([copies.set_column(5, "embedding", vector_column(vectors_for([6000] * 10, "1"), "half"))])
    updated = bench.index(**config)
    assert (updated["action"], updated["added"]) == ("updated", 10)
    card = read_card(f"file://{bench.index_path}")
    assert (card.format, card.rows, card.nodes) == (5, 2010, 2001)
    assert recall() >= 0.93
    bench.commit([rows_for(range(7000, 7400))])
    assert bench.index(**config)["action"] == "updated"
    assert "delta" not in read_card(f"file://{bench.index_path}").files
    assert recall() >= 0.93


@pytest.mark.parametrize(("factory", "rerank"), [("Flat", "auto"), ("HNSW16", "auto"), ("IVF8,SQ4", "always")])
def test_zeros_in_an_index_of_version_0_1_score_zero(
    factory: str, rerank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(600), "1")
    vectors_ND[30] = 0
    bench.commit([rows_for(range(600)).set_column(5, "embedding", vector_column(vectors_ND, "full"))])

    def normalised(vectors_BD: np.ndarray, metric: str) -> np.ndarray:
        faiss.normalize_L2(vectors_BD)  # all that version 0.1 did
        return np.zeros(len(vectors_BD), bool)

    with monkeypatch.context() as patched:
        patched.setattr("tlray.search.rows.from_table.prepare", normalised)
        bench.index(factory=factory, rerank=rerank)
    as_version_0_1_made_it(bench)
    searcher = Searcher.open(str(bench.index_path))
    (hits,) = searcher.search(vectors_for([5], "1"), 600).to_lists()
    assert [hit["uri"] for hit in hits if hit["score"] == 0] == ["file:///photos/train/000030.jpg"]
    (hits,) = searcher.search(vectors_for([5], "1"), 5, Filter(prefixes=("file:///photos/train/000030",))).to_lists()
    assert [hit["score"] for hit in hits] == [0]
