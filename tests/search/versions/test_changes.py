"""Small changes go beside the large file, many are merged into it; either way the answers are the table's."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.search.tables import Bench, exact, recall, rows_for, vectors_for
from tlray.errors import IndexCorruptError
from tlray.lake.table.parts import vector_column
from tlray.lake.table.table import Table
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter
from tlray.search.versions.card import Card, read_card


def card_of(bench: Bench) -> Card:
    return read_card(f"file://{bench.index_path}")


def check(bench: Bench, least_recall: float) -> None:
    """All rows of the table and no other are found, in the order of NumPy's scores."""
    uris, vectors_ND = bench.all()
    searcher = Searcher.open(str(bench.index_path))
    assert sorted(searcher.rows.table["uri"].to_pylist()) == sorted(uris)
    queries_BD = vectors_for(range(100_000, 100_100), "query")
    wanted_BK, _ = exact(queries_BD, vectors_ND, 10)
    found = [[hit["uri"] for hit in hits] for hits in searcher.search(queries_BD, 10).to_lists()]
    assert {uri for hits in found for uri in hits} <= set(uris)
    assert recall(found, [[uris[at] for at in row] for row in wanted_BK]) >= least_recall
    # The exact vectors of each row are the table's own.
    of_uri = dict(zip(uris, vectors_ND, strict=True))
    ids = searcher.rows.ids_N[:: max(1, len(uris) // 200)]
    own_BD = np.stack([of_uri[searcher.rows.uri(int(at))] for at in searcher.rows.positions(ids)])
    own_BD = own_BD / np.linalg.norm(own_BD, axis=1, keepdims=True)
    np.testing.assert_allclose(searcher.exact.take(ids), own_BD, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "rerank"), [("Flat", "auto"), ("HNSW16", "auto"), ("IVF16,Flat", "auto"), ("IVF8,SQ4", "always")]
)
def test_small_changes_go_beside_and_many_are_merged(factory: str, rerank: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, *_ = bench.fill(2000, part_rows=200)
    config = {"factory": factory, "rerank": rerank}
    bench.index(**config)
    built = card_of(bench)
    large = {kind: built.files[kind] for kind in ("faiss", "vectors") if kind in built.files}

    # 10 rows go, 10 come; then some of those that came go again, and others come.
    (second,) = bench.commit([rows_for([*range(10, 200), *range(5000, 5010)])], [first])
    assert bench.index(**config)["action"] == "updated"
    check(bench, 0.93)
    (third,) = bench.commit([rows_for([*range(10, 200), *range(5005, 5020)])], [second])
    updated = bench.index(**config)
    assert (updated["action"], updated["added"], updated["removed"]) == ("updated", 10, 5)
    check(bench, 0.93)
    card = card_of(bench)
    assert card.files | large == card.files and card.files["delta"].size_bytes < 20_000
    assert (card.measured_version, card.quality, card.base_next_node, card.next_id) == (1, built.quality, 2000, 2020)

    # A label that changes leaves the vectors alone.
    bench.commit([rows_for([*range(10, 200), *range(5005, 5020)]).set_column(2, "label", [["new"] * 205])], [third])
    assert bench.index(**config)["moved"] == 205
    assert card_of(bench).files["delta"] == card.files["delta"]
    assert card_of(bench).measured_version == card.measured_version

    # What was trained is measured again once a twentieth has changed; a graph and an exact index need not be.
    bench.commit([rows_for(range(5500, 5600))])
    bench.index(**config)
    card, is_trained = card_of(bench), factory.startswith("IVF")
    assert card.files | large == card.files and card.measured_version == (5 if is_trained else 1)
    assert card.quality.queries == (256 if is_trained else built.quality.queries)
    check(bench, 0.93)

    bench.commit([rows_for(range(6000, 6300))])
    assert bench.index(**config)["action"] == "updated"
    merged = card_of(bench)
    assert "delta" not in merged.files and merged.measured_version == merged.version == 6
    assert merged.base_next_node == merged.next_id == 2420
    assert ("vectors" in merged.files) == (rerank == "always")
    check(bench, 0.93)


def test_rows_unlike_the_others_are_measured_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000)
    bench.index(factory="PCA28,IVF64,Flat", rerank="always", recall_target=0.8)
    bench.commit([rows_for(range(5000, 5040))])
    bench.index(recall_target=0.8)
    assert card_of(bench).measured_version == 1
    rows = rows_for(range(6000, 6040))
    strange = 3 * np.random.default_rng(0).standard_normal((40, bench.dimensions)).astype(np.float32)
    bench.commit([rows.set_column(5, "embedding", vector_column(strange, "half"))])
    assert bench.index(recall_target=0.8)["measured_version"] == 3
    bench.commit([rows_for(range(7000, 7010))])
    assert bench.index(recall_target=0.8)["measured_version"] == 3


def test_a_target_out_of_reach_is_not_built_for_again_and_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000)
    config = {"factory": "IVF8,PQ4x4", "rerank": "never"}
    assert bench.index(**config)["recall_at_10"] < 0.9
    bench.commit([rows_for(range(5000, 5250))])
    assert bench.index(**config)["action"] == "updated"
    assert card_of(bench).measured_version == 2


def test_a_damaged_delta_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    bench.index(factory="IVF4,Flat")
    bench.commit([rows_for(range(900, 905))])
    bench.index()
    (path,) = bench.index_path.glob("files/delta-*")
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IndexCorruptError, match="delta-"):
        Searcher.open(str(bench.index_path))
    bench.commit([rows_for(range(905, 910))])
    with pytest.raises(IndexCorruptError, match="delta-"):
        bench.index()
    assert bench.index(rebuild=True)["action"] == "rebuilt"


def test_a_rebuild_mends_damaged_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    bench.index(factory="Flat")
    for path in bench.index_path.glob("files/*"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert bench.index(rebuild=True)["action"] == "rebuilt"
    assert len(Searcher.open(str(bench.index_path)).search(vectors_for([1], "1"), 3).scores_BK) == 1


def test_a_table_made_anew_is_another_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    bench.index(factory="Flat")
    shutil.rmtree(tmp_path / "table")
    again = Bench(tmp_path)
    again.commit([rows_for(range(1000, 1300))])
    assert Table.open(again.table.uri).version == card_of(bench).table_version
    assert again.index()["added"] == 300


def test_an_old_card_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    for number in range(4):
        bench.index(rebuild=True, keep_versions=10)
        if number == 0:
            next(bench.index_path.glob("versions/*")).write_text("{}")
    assert bench.index(rebuild=True, keep_versions=2)["action"] == "rebuilt"
    assert len(list(bench.index_path.glob("versions/*"))) == 2


def test_another_recall_target_tunes_anew_without_a_build(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000)
    assert bench.index(factory="IVF32,Flat", recall_target=0.6)["parameters"]["nprobe"] < 8
    updated = bench.index(recall_target=0.99)
    assert updated["action"] == "updated" and updated["recall_at_10"] >= 0.99


@pytest.mark.parametrize("factory", ["HNSW2", "PCA16,HNSW2"])
def test_every_new_row_is_found_though_no_link_leads_to_it(factory: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000, part_rows=200)
    config = {"factory": factory, "recall_target": 0.3}
    bench.index(**config)

    def new_rows_found(new: range) -> Searcher:
        searcher = Searcher.open(str(bench.index_path))
        names = [f"file:///photos/train/{number:06d}.jpg" for number in new]
        found = searcher.search(vectors_for(new, "1"), 1).to_lists()
        assert [hits[0]["uri"] for hits in found] == names
        # None is given twice, and where it may not be found it is not.
        hits = searcher.search(vectors_for(new, "1"), 20, Filter(prefixes=("file:///photos/train/00",))).to_lists()
        assert all(len({hit["uri"] for hit in some}) == len(some) == 20 for some in hits)
        gone = searcher.search(
            vectors_for(new, "1"), 20, Filter(prefixes=("file:///photos/train/000", "file:///photos/train/001"))
        ).to_lists()
        assert not {hit["uri"] for some in gone for hit in some} & set(names)
        return searcher

    bench.commit([rows_for(range(5000, 5150))])
    assert bench.index(**config)["action"] == "updated"
    searcher = new_rows_found(range(5000, 5150))
    lost = searcher._index.index.unreached
    assert len(lost) and lost.min() >= 2000
    assert card_of(bench).unreached == ()

    bench.commit([rows_for(range(6000, 6150))])
    assert bench.index(**config)["action"] == "updated"
    merged = card_of(bench)
    assert "delta" not in merged.files and set(lost) <= set(merged.unreached)
    new_rows_found(range(5000, 5150))
    new_rows_found(range(6000, 6150))
