"""Which rows of an index a search may find, and from the nodes that FAISS finds back to them.

Shape legend: B queries, J found nodes, K rows of an answer.
"""

from dataclasses import dataclass

import numpy as np

from tlray.search.rows.row_table import RowTable


@dataclass(frozen=True)
class Filter:
    """Which rows may be found: by label, by the beginning of the URI, by a condition; a row must pass all that are given.

    Labels and prefixes are compared character by character: a comma, a bracket or a star in one has no meaning.

    Attributes:
        labels: one of them; empty means any.
        prefixes: the URI begins with one of them; empty means any.
        where: the condition, on columns of the table (`tlray.where.condition`); empty means none.
    """

    labels: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    where: str = ""

    def __bool__(self) -> bool:
        return bool(self.labels or self.prefixes or self.where)

    def __str__(self) -> str:
        said = []
        if self.labels:
            said.append(f"one of the labels {list(self.labels)}")
        if self.prefixes:
            said.append(f"a URI that begins with one of {list(self.prefixes)}")
        if self.where:
            said.append(f"columns for which {self.where!r} holds")
        return " and ".join(said) or "anything"


class Selection:
    """The rows that a filter lets through.

    Args:
        rows: the live rows.
        where: the filter.
        next_node: over every node that was ever given.
        has_dead: whether FAISS may find nodes that no live row has.

    Attributes:
        positions: of the rows, ascending; None where all are let through.
        count: how many rows.
        is_filtered: whether the filter asks for anything.
        node_count: how many nodes the rows have.
        allowed: for each node from 0 up whether FAISS may find it; None where it may find any.
        zero_positions: of the rows in no node, of cosine 0 to everything.
    """

    def __init__(self, rows: RowTable, where: Filter, next_node: int, *, has_dead: bool) -> None:
        self._rows = rows
        self.positions = np.flatnonzero(rows.mask(where.labels, where.prefixes, where.where)) if where else None
        self.count: int = len(rows) if self.positions is None else len(self.positions)
        nodes = rows.nodes_N if self.positions is None else rows.nodes_N[self.positions]
        self.zero_positions = rows.zero_positions
        if self.positions is not None and len(self.zero_positions):
            self.zero_positions = np.intersect1d(self.zero_positions, self.positions, assume_unique=True)
        self.allowed: np.ndarray | None = None
        if where or has_dead:
            self.allowed = np.zeros(next_node, bool)
            self.allowed[nodes[nodes >= 0]] = True
        self.is_filtered = bool(where)
        self.node_count = len(rows.nodes_U) if self.allowed is None else int(np.count_nonzero(self.allowed))
        self._nodes_are_positions = not rows.has_copies and len(rows) == next_node
        # Rows by node, for expanding nodes that have several.
        self._by_node: tuple[np.ndarray, np.ndarray] | None = None
        if rows.has_copies:
            order = np.argsort(nodes, kind="stable")
            self._by_node = nodes[order], order if self.positions is None else self.positions[order]

    @property
    def nodes(self) -> np.ndarray:
        """The nodes of the rows, ascending."""
        return self._rows.nodes_U if self.allowed is None else np.flatnonzero(self.allowed)

    def first_positions(self, count: int) -> np.ndarray:
        """Positions of the first rows, in the index's order; at most `count`."""
        return np.arange(min(count, self.count)) if self.positions is None else self.positions[:count]

    def rows_of(self, nodes_BJ: np.ndarray, nearness_BJ: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """From nodes to the rows that have them, all rows of a node after each other.

        Args:
            nodes_BJ: found ones, nearest first; -1 where there are fewer.
            nearness_BJ: of these.
            k: at most so many rows for each query.

        Returns:
            positions_BK (-1 where there are fewer than k) and nearness_BK.
        """
        if self._by_node is None:
            if self._nodes_are_positions:
                return nodes_BJ, nearness_BJ
            return self._rows.first_positions(nodes_BJ.reshape(-1)).reshape(nodes_BJ.shape), nearness_BJ
        nodes_sorted, order = self._by_node
        first_BJ = np.searchsorted(nodes_sorted, nodes_BJ)
        counts_BJ = np.where(nodes_BJ < 0, 0, np.searchsorted(nodes_sorted, nodes_BJ, side="right") - first_BJ)
        ends_BJ = np.minimum(np.cumsum(counts_BJ, axis=1), k)
        counts_BJ = np.diff(ends_BJ, axis=1, prepend=0)
        counts = counts_BJ.ravel()
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        query, place = (
            np.repeat(np.arange(len(nodes_BJ)), counts_BJ.sum(axis=1)),
            np.repeat((ends_BJ - counts_BJ).ravel(), counts),
        )
        positions_BK = np.full((len(nodes_BJ), k), -1, np.int64)
        nearness_BK = np.full((len(nodes_BJ), k), -np.inf, np.float32)
        positions_BK[query, place + within] = order[np.repeat(first_BJ.ravel(), counts) + within]
        nearness_BK[query, place + within] = np.repeat(nearness_BJ.ravel(), counts)
        return positions_BK, nearness_BK
