"""Which FAISS index: a pure function of the table's size, the memory at hand and the recall that is asked for.

Sources: the FAISS wiki's "Guidelines to choose an index" (revision of March 26, 2026) and autofaiss 2.18, `optimize.py`,
which turns that page into thresholds.
"""

import math
import re
from typing import NamedTuple

from tlray.errors import ConfigError
from tlray.search.neighbours.exact import Metric

FLAT_MAX_ROWS = 10_000
"""Up to here every vector is compared. autofaiss does so below 1,000 and does not quantise below 10,000; a flat index is exact,
follows the table without loss and needs no training, and comparing 10,000 vectors costs a query milliseconds."""

WIDE_DIMENSIONS = 4096
"""From here vectors are reduced first, as the wiki asks where dimensions are many; pooled taps of most networks have fewer."""

PCA_DIMENSIONS = 512
"""What is left of a wide vector: 2 KiB, as in the page's examples of the order of hundreds; the recall is measured anyway."""

HNSW_LINKS = 32
HNSW_LEAST_LINKS = 8
"""autofaiss: as many links as memory allows, 32 at most, and no HNSW with fewer than 8. The wiki: 4 <= M <= 64."""

IVF_ID_BYTES = 8
PQ_CODE_BYTES = (256, 128, 64, 48, 32, 24, 16, 8, 4)
"""Lengths of codes, as autofaiss tries them: the longest code that fits is the most accurate."""

TRAINING_ROWS_PER_CENTROID = 100
"""autofaiss; FAISS itself wants at least 39 and uses at most 256."""

PQ_TRAINING_ROWS = 65_536
"""256 centroids x the 256 points that FAISS uses for each; OPQ takes as many at most."""

PCA_TRAINING_ROWS_PER_DIMENSION = 10
"""A covariance of d dimensions from ten times as many rows; FAISS takes at most 1,000 times as many."""


class Choice(NamedTuple):
    """What index is built, for its card.

    Attributes:
        factory: FAISS's factory string.
        reasons: the rules that led to it.
        ef_construction: as the user asks for it; None for FAISS's own.
    """

    factory: str
    reasons: tuple[str, ...]
    ef_construction: int | None = None


def choose(rows: int, dimensions: int, memory_bytes: int, recall_target: float, metric: Metric = "cosine") -> Choice:
    """Choose the kind of index for so many vectors.

    Args:
        rows: vectors of the table.
        dimensions: of one vector.
        memory_bytes: what the index may take in memory.
        recall_target: recall at 10 that it has to reach; 1 means exact.
        metric: inner products survive OPQ (a rotation) but not PCA, which moves the origin.

    Raises:
        ConfigError: nothing fits into that memory.
    """
    flat_bytes = rows * dimensions * 4
    if recall_target >= 1:
        return _fitting(Choice("Flat", ("recall 1 is asked for: only Flat guarantees it (wiki)",)), flat_bytes, memory_bytes)
    if rows < FLAT_MAX_ROWS and flat_bytes <= memory_bytes:
        return Choice("Flat", (f"under {FLAT_MAX_ROWS} rows every vector is compared (wiki, autofaiss)",))
    prefix, width, reasons = "", dimensions, []
    if dimensions >= WIDE_DIMENSIONS and metric != "ip":
        prefix, width = f"PCA{PCA_DIMENSIONS},", PCA_DIMENSIONS
        reasons.append(f"{dimensions} dimensions are reduced to {width} by PCA (wiki: preprocessing)")
    if dimensions < WIDE_DIMENSIONS or prefix:
        kept = _uncompressed(rows, width, memory_bytes)
        if kept is not None:
            return Choice(prefix + kept.factory, (*reasons, *kept.reasons))
    return _quantised(rows, dimensions, memory_bytes)


def fallback(choice: Choice, rows: int) -> Choice | None:
    """What to build where a chosen index misses its recall: lists in place of a graph, as a search may look into all of them.

    Crowds of almost equal vectors take all of each other's links, and a graph then does not lead past them.

    Args:
        choice: what was chosen.
        rows: vectors to index.

    Returns:
        None for kinds whose searches can be as wide as need be already.
    """
    prefix, graph, _ = choice.factory.rpartition("HNSW")
    if not graph or prefix.startswith(("IVF", "OPQ")):
        return None
    return Choice(f"{prefix}{_lists(rows)},Flat", (*choice.reasons[:-1], "vectors in lists, without links (wiki: IVF-Flat)"))


def _fitting(choice: Choice, size_bytes: int, memory_bytes: int) -> Choice:
    if size_bytes > memory_bytes:
        raise ConfigError(
            f"an exact index takes {size_bytes} bytes, more than memory_bytes {memory_bytes}; give it more, or a recall "
            "target under 1"
        )
    return choice


def _uncompressed(rows: int, width: int, memory_bytes: int) -> Choice | None:
    links = min(HNSW_LINKS, (memory_bytes // rows - width * 4) // 8)
    if links >= HNSW_LEAST_LINKS:
        reason = f"{rows} x (4 x {width} + 8 x {links}) bytes fit: HNSW where memory is ample (wiki, autofaiss)"
        return Choice(f"HNSW{links}", (reason,))
    if rows * (width * 4 + IVF_ID_BYTES) <= memory_bytes:
        reason = "vectors fit uncompressed, links beside them do not: IVF-Flat (autofaiss)"
        return Choice(f"{_lists(rows)},Flat", (reason,))
    return None


def _quantised(rows: int, dimensions: int, memory_bytes: int) -> Choice:
    for code_bytes in PQ_CODE_BYTES:
        if code_bytes < dimensions and rows * (code_bytes + IVF_ID_BYTES) <= memory_bytes:
            # The wiki: a multiple of the code's bytes, at most the dimensions, at most four times the bytes.
            width = code_bytes * min(dimensions // code_bytes, 4)
            reason = f"vectors do not fit: codes of {code_bytes} bytes, the longest that fit, rotated by OPQ (wiki, autofaiss)"
            return Choice(f"OPQ{code_bytes}_{width},{_lists(rows)},PQ{code_bytes}", (reason,))
    raise ConfigError(
        f"{rows} rows of {dimensions} dimensions do not fit into memory_bytes {memory_bytes}, whatever the compression; "
        f"the least is {rows * (PQ_CODE_BYTES[-1] + IVF_ID_BYTES)}"
    )


def _lists(rows: int) -> str:
    """Inverted lists: autofaiss's numbers, within the wiki's 4 to 16 times the root below a million rows."""
    if rows < 1_000_000:
        return f"IVF{2 ** round(math.log2(4 * math.sqrt(rows)))}"
    lists = 16_384 if rows < 10_000_000 else 65_536 if rows < 300_000_000 else 131_072
    return f"IVF{lists}_HNSW32"


def training_rows(factory: str, rows: int, dimensions: int) -> int:
    """Rows that an index is trained on, 0 where it needs none.

    Args:
        factory: FAISS's factory string.
        rows: of the table.
        dimensions: of one vector.
    """
    wanted = 0
    if lists := re.search(r"IVF(\d+)", factory):
        wanted = TRAINING_ROWS_PER_CENTROID * int(lists[1])
    if re.search(r"PQ\d", factory):
        wanted = max(wanted, PQ_TRAINING_ROWS)
    if re.search(r"PCA|ITQ", factory):
        wanted = max(wanted, PCA_TRAINING_ROWS_PER_DIMENSION * dimensions)
    if "SQ" in factory:
        wanted = max(wanted, PQ_TRAINING_ROWS)
    return min(wanted, rows)
