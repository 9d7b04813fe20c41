"""What a table holds, as digests: 42 bytes a row, whatever the length of its URIs and vectors."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.lake.containers import container_of
from tlray.lake.parts import Part, read_part
from tlray.lake.table import Table

DIGEST_BYTES = 16
"""128 bits: two of a billion URIs collide with a chance of 1e-21."""


@dataclass
class TableState:
    """The rows of a table, as digests sorted by key.

    Attributes:
        keys: digest of each row's item (the image, or the shard that holds it).
        etags: 64-bit hash of each row's etag.
        labels: 64-bit hash of each row's label.
        retry: whether the row failed for a reason that this run tries again.
        part_index: which of `parts` holds the row.
        row: position in that part.
        seen: set while the listing is compared.
        parts: the live parts.
    """

    keys: np.ndarray
    etags: np.ndarray
    labels: np.ndarray
    retry: np.ndarray
    part_index: np.ndarray
    row: np.ndarray
    parts: list[Part]
    seen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.keys), bool)

    @classmethod
    def load(cls, table: Table | None, kind: str, retry_codes: Iterable[str]) -> "TableState":
        """Read the identity of every live row; vectors are not touched.

        Args:
            table: None for one that does not exist yet.
            kind: `Source.kind`.
            retry_codes: error codes whose rows count as stale.
        """
        codes = pa.array(list(retry_codes), pa.string())
        parts = table.parts() if table is not None else []
        pieces: list[list[np.ndarray]] = [[np.empty(0, "S16"), *(np.empty(0, np.uint64) for _ in range(2))]]
        retry, part_index, row = [np.empty(0, bool)], [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
        for index, part in enumerate(parts):
            assert table is not None
            rows = read_part(table.uri, part.path, ["uri", "etag", "label", "error"])
            uris = rows["uri"].to_pylist()
            items = uris if kind == "images" else [container_of(uri) for uri in uris]
            pieces.append([digests(items), short_hashes(rows["etag"]), short_hashes(rows["label"])])
            retry.append(pc.is_in(rows["error"], value_set=codes).to_numpy())
            part_index.append(np.full(len(items), index, np.uint32))
            row.append(np.arange(len(items), dtype=np.uint32))
        keys, etags, labels = (np.concatenate(column) for column in zip(*pieces, strict=True))
        order = np.argsort(keys, kind="stable")
        return cls(
            keys[order],
            etags[order],
            labels[order],
            np.concatenate(retry)[order],
            np.concatenate(part_index)[order],
            np.concatenate(row)[order],
            parts,
        )


def digests(texts: Sequence[str]) -> np.ndarray:
    """128-bit digests of strings, as fixed-width bytes that sort and search."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts)
    return np.frombuffer(joined, f"S{DIGEST_BYTES}")


def short_hashes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """64-bit hashes of strings that are only compared within one row; null is 0."""
    unique: dict[str | None, int] = {None: 0}
    hashes = np.empty(len(column), np.uint64)
    for index, text in enumerate(column.to_pylist()):
        value = unique.get(text)
        if value is None:
            value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
            if len(unique) < 100_000:
                unique[text] = value
        hashes[index] = value
    return hashes
