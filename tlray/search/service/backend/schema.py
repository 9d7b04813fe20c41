"""What the service's interface takes and gives, as models; the OpenAPI document is made of them.

Lists fail at their first wrong item: to collect the faults of millions of items takes gigabytes.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

MAX_TEXT_CHARACTERS = 4096
MAX_FILTERS = 256
MAX_VECTOR = 65_536


def _encodable(value: Any) -> Any:
    """JSON can spell half of a surrogate pair, which is no text."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("not valid Unicode") from error
    return value


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS), BeforeValidator(_encodable)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Query(_Strict):
    """One query: by words, by a row's id or URI, by a label's mean vector, or by a vector. Exactly one of them."""

    text: Text | None = Field(None, description="words, where the index's network has a text tower (`words` of /api/index)")
    id: int | None = Field(None, ge=0, lt=2**62, description="of a row, as answers have it; it is left out of its own answer")
    uri: Text | None = Field(None, description="of a row; it is left out of its own answer")
    label: Text | None = Field(None, description="the mean vector of the rows with this label")
    vector: list[FiniteFloat] | None = Field(
        None, max_length=MAX_VECTOR, fail_fast=True, description="as the table's recipe gives it"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "Query":
        if sum(value is not None for value in (self.text, self.id, self.uri, self.label, self.vector)) != 1:
            raise ValueError("expected exactly one of text, id, uri, label and vector")
        return self


class SearchRequest(_Strict):
    """Queries of one request, all answered in the same way."""

    queries: list[Query] = Field(min_length=1, fail_fast=True)
    k: PositiveInt = Field(10, lt=2**31, description="answers to each query")
    labels: list[Text] = Field([], max_length=MAX_FILTERS, fail_fast=True, description="only rows with one of these labels")
    prefixes: list[Text] = Field(
        [], max_length=MAX_FILTERS, fail_fast=True, description="only rows whose URI begins with one of these"
    )
    where: Text = Field("", description="only rows of which this holds: price < 10 and site = 'A'")
    columns: list[Text] = Field(
        [],
        max_length=MAX_FILTERS,
        fail_fast=True,
        description="of the table, to show with each row; all for each that travelled",
    )
    recipe_id: Text | None = Field(None, description="of what embedded the vectors; another than the index's is refused")

    @property
    def texts(self) -> list[str]:
        """The words of the queries that have some, in order."""
        return [query.text for query in self.queries if query.text is not None]


class Row(_Strict):
    """A row of the index, as answers show it."""

    id: int
    uri: str
    label: str | None
    columns: dict[str, Any] | None = Field(
        None, exclude_if=lambda columns: columns is None, description="values by name, where the request asks for columns"
    )


class Hit(Row):
    """A row that was found, with how near it is."""

    score: float


class SearchResponse(_Strict):
    """Answers, in the order of the queries, all by one version of the index."""

    version: int
    metric: str
    queries: list[Row | None] = Field(description="the row that each query is, where it is one")
    answers: list[list[Hit]]
    cut_texts: int = Field(0, description="queries whose text was longer than the network takes, and lost its end")


class IndexInfo(_Strict):
    """What the index holds, and how it was made."""

    version: int
    table: str
    table_version: int
    recipe_id: str
    rows: int
    dimensions: int
    metric: str
    factory: str
    recall_at_10: float
    measured_version: int = Field(description="the version of the index that the recall was measured on")
    labels: dict[str, int] = Field(description="rows of each label, the most frequent ones")
    label_count: int = Field(description="how many labels there are, those that are not listed included")
    columns: dict[str, str] = Field(description="what where and columns may name, and of which type it is")
    images: bool = Field(description="whether images can be searched by")
    words: bool = Field(description="whether words can be searched by")
    texts: bool = Field(description="whether rows are texts, which /api/text gives, and not images")
    max_k: int = Field(description="most answers to one query")
    max_batch: int = Field(description="most queries of one request")
    max_body_bytes: int = Field(description="largest request")


class RowText(_Strict):
    """The text of a row, in a table of texts."""

    text: str
    characters: int = Field(description="of the whole text, of which a long one's beginning is given")


class Point(_Strict):
    """The place of one row on the map."""

    id: int
    x: float
    y: float
    label: str | None


class Map(_Strict):
    """A sample of rows in two dimensions."""

    layout: Literal["principal components", "UMAP"]
    improving: bool = Field(description="whether a better layout is being computed; ask again")
    points: list[Point]
