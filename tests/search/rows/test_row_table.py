"""From nodes back to rows, against plain Python."""

import numpy as np
import pyarrow as pa
import pytest

from tlray.search.rows.copies import NO_NODE
from tlray.search.rows.row_table import ROWS_SCHEMA, RowTable
from tlray.search.rows.selection import Filter, Selection


def rows_of(nodes: list[int], labels: list[str | None] | None = None) -> RowTable:
    count = len(nodes)
    columns = [range(count), [f"s3://b/{at}" for at in range(count)], [None] * count, labels or [None] * count]
    return RowTable(pa.table([*columns, ["p"] * count, range(count), nodes, [None] * count], schema=ROWS_SCHEMA))


@pytest.mark.parametrize("seed", range(12))
def test_an_answer_names_all_rows_of_a_node_in_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, nodes = int(rng.integers(1, 40)), int(rng.integers(1, 15))
    node_of = rng.integers(NO_NODE, nodes, count).tolist()
    labels = rng.choice(["a", "b"], count).tolist()
    rows, where = rows_of(node_of, labels), Filter(labels=("a",)) if seed % 2 else Filter()
    selection = Selection(rows, where, nodes, has_dead=True)
    allowed = [at for at in range(count) if not where or labels[at] == "a"]
    assert selection.count == len(allowed)
    assert selection.nodes.tolist() == sorted({node_of[at] for at in allowed} - {NO_NODE})
    assert selection.node_count == len(selection.nodes)
    assert selection.zero_positions.tolist() == [at for at in allowed if node_of[at] == NO_NODE]
    assert selection.first_positions(5).tolist() == allowed[:5]

    found_BJ = np.stack([rng.permutation(selection.nodes)[:4] for _ in range(3)])
    found_BJ = np.pad(found_BJ, ((0, 0), (0, 2)), constant_values=-1)  # as FAISS says that there are no more
    nearness_BJ = -np.arange(found_BJ.size, dtype=np.float32).reshape(found_BJ.shape)
    for k in (1, 3, count):
        positions_BK, nearness_BK = selection.rows_of(found_BJ, nearness_BJ, k)
        for query, nodes_J in enumerate(found_BJ):
            expected = [(at, j) for j, node in enumerate(nodes_J) for at in allowed if node_of[at] == node and node >= 0][:k]
            there = [
                (int(at), float(near)) for at, near in zip(positions_BK[query], nearness_BK[query], strict=True) if at >= 0
            ]
            assert there == [(at, float(nearness_BJ[query, j])) for at, j in expected]


def test_without_copies_a_node_is_one_row_wherever_its_id_is() -> None:
    dense, gaps = rows_of([0, 1, 2, 3]), rows_of([1, 4, 6])
    assert not dense.has_copies and not gaps.has_copies
    found, nearness = np.array([[2, 0, -1]]), np.zeros((1, 3), np.float32)
    assert Selection(dense, Filter(), 4, has_dead=False).rows_of(found, nearness, 3)[0].tolist() == [[2, 0, -1]]
    found = np.array([[6, 1, -1]])
    assert Selection(gaps, Filter(), 7, has_dead=True).rows_of(found, nearness, 3)[0].tolist() == [[2, 0, -1]]
    assert gaps.are_live(np.array([0, 1, 4, 5, 6, 7])).tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize("text", ["a,b", "[x]", "null", '"q"', "{j}", "it's", "100%", "*", "a|b", "", " ", "Größe", "\\d"])
def test_labels_and_prefixes_are_taken_character_by_character(text: str) -> None:
    labels = [text, text + "x", "other", None, text.upper() or "Z"]
    rows = rows_of([0, 1, 2, 3, 4], labels)
    assert np.flatnonzero(rows.mask(labels=(text,))).tolist() == [at for at, label in enumerate(labels) if label == text]
    uris = [f"s3://b/{text}/1", f"s3://b/{text}", "s3://b/other", f"s3://c/{text}/1", "s3://b/a"]
    table = rows.table.set_column(1, ROWS_SCHEMA.field("uri"), pa.array(uris))
    found = np.flatnonzero(RowTable(table).mask(prefixes=(f"s3://b/{text}/",))).tolist()
    assert found == [at for at, uri in enumerate(uris) if uri.startswith(f"s3://b/{text}/")]
