"""The parameters of a search and the recall that they were measured to reach."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen record that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(Strict):
    """What a search is done with.

    Attributes:
        nprobe: inverted lists that are looked into (IVF).
        ef_search: candidates that are kept on the way through the graph (HNSW).
        rerank: this many times k candidates are compared again, exactly; 1 means none.
    """

    nprobe: int | None = None
    ef_search: int | None = None
    rerank: int = 1


class Quality(Strict):
    """What was measured on the index.

    Attributes:
        recall_at_10: share of the 10 exact neighbours of a row that a search finds, ties counted as found.
        standard_error: of that mean over the queries.
        queries: rows that were searched for; they were not trained on.
        milliseconds_single: of one query alone, median.
        milliseconds_batch: of one query among all of them.
        reconstruction_error: mean squared error of the stored vectors, as a share of their squared length; 0 means exact.
    """

    recall_at_10: float
    standard_error: float
    queries: int
    milliseconds_single: float
    milliseconds_batch: float
    reconstruction_error: float
