"""tlray: turn a lake of images into a table of embeddings that can be trusted, kept up to date and reused.

::

    import tlray

    tlray.extract("~/Pictures", "photos-table", backbone="resnet50", labels="folder")
    table = tlray.open("photos-table")
    vectors, labels = table.to_numpy(), table.to_numpy("label")
    tlray.build_index(table, "photos-index")
    tlray.Index("photos-index").search("cat.jpg", k=5)

Importing it loads next to nothing: each name comes with its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tlray.version import __version__ as __version__

if TYPE_CHECKING:
    from tlray import errors
    from tlray.api.embedding.encoder import Encoder
    from tlray.api.index import Index
    from tlray.api.model import Model
    from tlray.api.runs import advise, build_index, extract, predict, report, train
    from tlray.api.table import TableView as Table
    from tlray.api.table import open  # noqa: A004
    from tlray.recipe.images import Recipe

__all__ = [
    "Encoder",
    "Index",
    "Model",
    "Recipe",
    "Table",
    "advise",
    "build_index",
    "errors",
    "extract",
    "open",
    "predict",
    "report",
    "train",
]

_MODULES = {
    "Encoder": "tlray.api.embedding.encoder",
    "Index": "tlray.api.index",
    "Model": "tlray.api.model",
    "Recipe": "tlray.recipe.images",
    "Table": "tlray.api.table:TableView",
    "advise": "tlray.api.runs",
    "build_index": "tlray.api.runs",
    "extract": "tlray.api.runs",
    "open": "tlray.api.table",
    "predict": "tlray.api.runs",
    "report": "tlray.api.runs",
    "train": "tlray.api.runs",
}
"""The module of each public name, and its name there where that is another one; `errors` is a module itself."""


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("tlray.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'tlray' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
