"""An index in a bucket: built, followed, searched and pruned by the same code as one in a folder."""

import numpy as np
import pytest

from tests.search.tables import Bench, exact, rows_for, vectors_for
from tlray.errors import IndexCorruptError
from tlray.lake.storage.open import open_store
from tlray.search.query.searcher import Searcher
from tlray.search.versions.card import read_card, versions


@pytest.mark.s3
def test_an_index_lives_in_a_bucket(s3_bucket: str, tmp_path) -> None:
    bench, uri = Bench(tmp_path), f"{s3_bucket}/indexes/photos"
    bench.fill(600, part_rows=200)
    config = {"out": uri, "factory": "IVF8,SQ4", "rerank": "always"}
    assert bench.index(**config)["action"] == "built"
    for step in range(2):
        bench.commit([rows_for(range(1000 + 10 * step, 1010 + 10 * step))])
        assert bench.index(**config)["action"] == "updated"
    assert versions(uri) == [2, 3]
    searcher, (uris, vectors_ND) = Searcher.open(uri), bench.all()
    queries_BD = vectors_for(range(100_000, 100_020), "query")
    wanted_BK, _ = exact(queries_BD, vectors_ND, 1)
    first = [hits[0]["uri"] for hits in searcher.search(queries_BD, 1).to_lists()]
    assert np.mean([one == uris[at] for one, (at,) in zip(first, wanted_BK, strict=True)]) >= 0.9
    store, named = open_store(uri), {file.name for number in (2, 3) for file in read_card(uri, number).files.values()}
    stored = {one for page in store.list(f"{uri}/files") for one in page["uri"].to_pylist()}
    assert {one.rpartition("/")[2] for one in stored} == named
    delta = next(one for one in stored if one.endswith(read_card(uri).files["delta"].name))
    store.write(delta, store.read(delta).data[:-1])
    with pytest.raises(IndexCorruptError):
        Searcher.open(uri)
