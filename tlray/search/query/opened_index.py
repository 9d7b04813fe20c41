"""An index that is open: what it is, its rows and vectors, and the encoder of its queries.

Shape legend: M rows asked for, D dimensions.
"""

import tempfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tlray.columns.column import type_of
from tlray.errors import ConfigError, QueryError, RecipeMismatchError
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.recipe import Recipe, TextRecipe
from tlray.search.rows.copies import NO_NODE
from tlray.search.versions.card import read_card
from tlray.search.versions.exact_vectors import IndexVectors
from tlray.search.versions.load import LoadedIndex, load_index

if TYPE_CHECKING:
    from tlray.models.encoder.text import TextEncoder
    from tlray.search.query.query_encoder import QueryEncoder

_ABOUT = ("version", "table", "table_version", "recipe_id", "rows", "dimensions", "metric", "factory")


class OpenedIndex:
    """One version of an index, opened for searching.

    Args:
        index: loaded.
        scratch: the folder that `index` may have files in; deleted with this object.

    Attributes:
        card: what the index is.
        recipe_file: the recipe of its vectors, with the golden ones, as the index keeps it.
        rows: its live rows.
        exact: the distinct vectors of the live rows by node, prepared: of unit length where the metric is cosine.
    """

    def __init__(self, index: LoadedIndex, scratch: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        self._index, self._scratch = index, scratch
        self.card, self.recipe_file, self.rows = index.card, index.recipe_file, index.rows
        self.exact = IndexVectors(index.index, index.rows, index.stored, index.card.table, index.card.column)
        self._encoder_lock = threading.Lock()
        self._encoder: QueryEncoder | None = None
        self._text_encoder: TextEncoder | None = None

    @classmethod
    def open(cls, index: str, version: int | None = None) -> Self:
        """Open a version of an index for searching.

        Args:
            index: URI or path.
            version: default the newest.

        Raises:
            IndexMissingError: there is none.
            IndexCorruptError: a file is not what the card says.
        """
        uri = to_uri(index)
        scratch = tempfile.TemporaryDirectory(prefix="tlray-searcher-")
        return cls(load_index(uri, read_card(uri, version), Path(scratch.name)), scratch)

    def vectors(self, positions_M: np.ndarray) -> np.ndarray:
        """The prepared vectors_MD of rows of the index, given by position: of unit length where the metric is cosine."""
        nodes_M = self.rows.nodes_N[positions_M]
        if not (nodes_M == NO_NODE).any():
            return self.exact.take(nodes_M)
        vectors_MD = np.zeros((len(nodes_M), self.card.dimensions), np.float32)
        vectors_MD[nodes_M != NO_NODE] = self.exact.take(nodes_M[nodes_M != NO_NODE])
        return vectors_MD

    @property
    def scores_are_exact(self) -> bool:
        """Whether scores come from the vectors themselves, not from codes of them."""
        return self._index.index.kind.is_exact or self.card.parameters.rerank > 1

    def table_version(self) -> int:
        """The table's newest version; the index is behind where its card has a lower one.

        Raises:
            RecipeMismatchError: at its place there is a table of another recipe now.
            TableError: there is none any more.
        """
        table = Table.open(self.card.table)
        if table.recipe_file.recipe_id != self.card.recipe_id:
            raise RecipeMismatchError(
                f"{self.card.table} now holds recipe {table.recipe_file.recipe_id[:12]}, but the index is of recipe "
                f"{self.card.recipe_id[:12]}; build another index of it"
            )
        return table.version

    def check_recipe(self, recipe_id: str) -> None:
        """Refuse vectors that another recipe has made.

        Raises:
            RecipeMismatchError: they are.
        """
        if recipe_id != self.card.recipe_id:
            raise RecipeMismatchError(
                f"the query was embedded by recipe {recipe_id[:12]}, but the index is of recipe {self.card.recipe_id[:12]}; "
                "embed it by the index's"
            )

    def encoder(self, **options: int) -> "QueryEncoder":
        """The network for query images, made at the first call and checked by the golden vectors.

        Raises:
            GoldenMismatchError: this machine computes other numbers.
        """
        with self._encoder_lock:
            if self._encoder is None:
                from tlray.search.query.query_encoder import QueryEncoder  # torch, only where images are searched by

                self._encoder = QueryEncoder(self.recipe_file, self.card.column, **options)
            return self._encoder

    @property
    def takes_texts(self) -> bool:
        """Whether texts can be searched by, as far as the index's own files say: without loading a network."""
        golden = self.recipe_file.golden_text
        is_shared = golden is not None and len(golden[0]) == self.card.dimensions and self._ranks_by_cosine
        return is_shared or isinstance(self.recipe_file.recipe, TextRecipe)

    @property
    def _ranks_by_cosine(self) -> bool:
        return self.card.metric == "cosine" or self.recipe_file.recipe.normalize

    def text_encoder(self) -> "TextEncoder":
        """What embeds texts as the table's vectors are, loaded at the first call and checked by the golden texts.

        Of a table of images that is the text tower of its network; of a table of texts, what made the table.

        Raises:
            ConfigError: it has none, or the index is of another layer or measures what texts are not compared by.
            GoldenMismatchError: this machine embeds texts otherwise.
        """
        if isinstance(self.recipe_file.recipe, Recipe) and not self._ranks_by_cosine:
            raise ConfigError(
                f"the index measures {self.card.metric} between vectors of any length, but words find images by cosine; "
                "build one with --metric cosine"
            )
        with self._encoder_lock:
            if self._text_encoder is None:
                from tlray.models.encoder.text import open_text_encoder  # torch, only where texts are searched by

                self._text_encoder = open_text_encoder(self.recipe_file, self.card.column, local_copy)
            return self._text_encoder

    @cached_property
    def columns(self) -> dict[str, str]:
        """The columns that a condition may name, and their types, each in one word."""
        return {field.name: str(type_of(field.type)) for field in self.rows.fields}

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a person wants to know of the index: version, table, recipe, rows, metric, factory, recall."""
        recall = {"recall_at_10": self.card.quality.recall_at_10, "measured_version": self.card.measured_version}
        return {name: getattr(self.card, name) for name in _ABOUT} | recall


def check_texts(texts: Sequence[str]) -> None:
    """Refuse texts to search by that say nothing.

    Raises:
        QueryError: one of them is empty, or has nothing but white space.
    """
    at = next((at for at, text in enumerate(texts) if not text.strip()), None)
    if at is not None:
        raise QueryError(f"text {at} (from 0) is {texts[at]!r}; expected words, such as 'a red bicycle'")
