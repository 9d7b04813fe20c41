"""What a run starts from: a source, a table and a network, each opened and checked against the others before any work."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import ConcurrentWriteError, ConfigError, SourceError
from tlray.extraction.run.workplace import Workplace
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.place.occupant import require_new_table_place
from tlray.lake.source.columns import with_columns
from tlray.lake.source.open import check_names_lead_somewhere, open_source
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.source import Source
from tlray.lake.table.recipe_check import check_recipe
from tlray.lake.table.schema import table_schema
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.recipe import AnyRecipe, Recipe
from tlray.recipe.texts import is_of_texts

OF_TEXTS = ("text", "unknown_fraction", "cut_fraction")
"""Names that tables of texts, and listings of them, have for themselves."""

if TYPE_CHECKING:
    from tlray.extraction.target import Target


@dataclass(frozen=True)
class Inputs:
    """Source, table and network of a run, which fit together.

    Attributes:
        source: of the images.
        table_uri: where the table is or is to be.
        table: as it was found; None where it is yet to be made.
        target: the network, and what the table keeps of its output.
        read_spec: how the source's items become pixels for the network.
        late_columns: those that the table does not have as it was found, and that are in tar and Parquet files, which are not
            all read again.
    """

    source: Source
    table_uri: str
    table: Table | None
    target: "Target"
    read_spec: ReadSpec
    late_columns: tuple[str, ...]

    @classmethod
    def open(
        cls,
        source_config: SourceConfig,
        table_uri: str,
        make_target: Callable[[], "Target"],
        workplace: Workplace,
        *,
        is_dry_run: bool,
    ) -> "Inputs":
        """Open all of it, the cheap checks first.

        Raises:
            ConfigError: something is wrong or does not fit; nothing was written.
        """
        source = open_source(source_config)
        check_names_lead_somewhere(source)
        table = Table.open_or_none(table_uri)
        if table is None:
            require_new_table_place(table_uri)
        settled = with_columns(source, table.carried if table else (), _own_names(source, table))
        source = settled.source
        for note in settled.notes:
            say(note)
        # A source that cannot be listed, or whose first values do not fit, leaves nothing there.
        if (table is None or source.columns) and next(source.pages(), None) is None and table is None:
            raise SourceError(f"{source.uri} has no name from source.keys_from on and before source.keys_to; expected one")
        starts_soon = table is None and not is_dry_run
        target = workplace.while_it_starts(make_target) if starts_soon else make_target()
        if table is not None:
            target = target.under_rule_of(table.recipe_file.recipe)
        recipe = target.backbone.recipe
        if table is not None:
            check_recipe(table.recipe_file, recipe, table_uri, output=target.output)
        inputs = cls(source, table_uri, table, target, _read_spec(source, table, recipe), _late_columns(source, table))
        if late := inputs.late_columns:
            say(
                f"{', '.join(late)}: null for {source.config.things} of files that the table has and that have not changed, as "
                "these are not read again; extract to a new table to have values for all"
            )
        return inputs

    def as_now(self) -> "Inputs":
        """The same with the table as it is when nobody else writes to it any more: it was looked at before that.

        Raises:
            RecipeMismatchError: another run has made one of another recipe meanwhile.
            ConcurrentWriteError: it is gone, or has columns of other types by now.
        """
        table, recipe = Table.open_or_none(self.table_uri), self.target.backbone.recipe
        if table is not None:
            check_recipe(table.recipe_file, recipe, self.table_uri, output=self.target.output)
        types = {column.name: column.type for column in (table.carried if table else ())}
        others = [column.name for column in self.source.columns if types.get(column.name, column.type) != column.type]
        if others or (table is None and self.table is not None):
            changed = f"got {', '.join(others)} with other types" if others else "was removed"
            raise ConcurrentWriteError(f"{self.table_uri} {changed} while this run began; run the same command again")
        read_spec, late_columns = _read_spec(self.source, table, recipe), _late_columns(self.source, table)
        return replace(self, table=table, read_spec=read_spec, late_columns=late_columns)

    @property
    def ids(self) -> dict[str, str]:
        """The table and its fingerprints, as the result begins."""
        return {"table": self.table_uri, **self.target.ids}


def _late_columns(source: Source, table: Table | None) -> tuple[str, ...]:
    if table is None or source.kind == "images":
        return ()
    return tuple(column.name for column in source.columns if column not in table.carried)


def _read_spec(source: Source, table: Table | None, recipe: AnyRecipe) -> ReadSpec:
    """How a source's items become what a network takes.

    Raises:
        ConfigError: images are to be embedded as texts, or texts as images.
    """
    text = source.config.text
    columns = columns_of(source, table) if source.kind == "images" else source.columns
    if isinstance(recipe, Recipe):
        if text is not None:
            raise ConfigError(
                f"source.text is {text!r}, but {recipe.backbone} embeds images; leave it out, or give a backbone of texts"
            )
        check_preprocessing(recipe.preprocessing)
        return ReadSpec.of(source, recipe.preprocessing, recipe.image_rule, columns)
    require_text(recipe.backbone, source.config)
    return ReadSpec.of(source, None, columns=columns)


def require_text(backbone: str, source: SourceConfig) -> None:
    """Refuse a backbone of texts for a source that does not say where its texts are.

    Raises:
        ConfigError: that is so.
    """
    if is_of_texts(backbone) and source.text is None:
        raise ConfigError(
            f"{backbone} embeds texts: give source.text, the column of a table of them, or the ending of files (txt)"
        )


def columns_of(source: Source, table: Table | None) -> tuple[Column, ...]:
    """The columns of a table once those of a source have travelled into it."""
    there = table.carried if table else ()
    return (*there, *(column for column in source.columns if column not in there))


def _own_names(source: Source, table: Table | None) -> set[str]:
    names = () if table is None else table_schema(table.recipe_file).names
    return {name.lower() for name in (*names, *(OF_TEXTS if source.config.text is not None else ()))}
