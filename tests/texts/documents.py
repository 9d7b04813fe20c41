"""Real documents that installed packages carry: the docstrings of libraries, each by the field that it is about."""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path

TOPICS = {
    "statistics": ("scipy.stats", "scipy.stats.mstats", "sklearn.metrics", "sklearn.linear_model"),
    "signals": ("scipy.signal", "scipy.fft", "scipy.ndimage"),
    "tables": ("pandas", "pandas.DataFrame", "pandas.Series", "polars", "polars.DataFrame", "polars.Expr"),
    "networks": ("torch.nn", "torch.nn.functional", "torch.optim", "torchvision.transforms.v2", "torchvision.models"),
    "graphs": ("networkx", "networkx.algorithms"),
}


@cache
def documents() -> list[tuple[str, str, str]]:
    """Name, text and topic of each, every text once; well over a thousand."""
    found: dict[str, tuple[str, str]] = {}
    for topic, places in TOPICS.items():
        for place in places:
            module, _, attribute = place.rpartition(".") if place.rpartition(".")[2][:1].isupper() else (place, "", "")
            holder = importlib.import_module(module)
            for name, member in inspect.getmembers(getattr(holder, attribute) if attribute else holder):
                text = inspect.getdoc(member) if callable(member) and not name.startswith("_") else None
                if text and len(text) > 200:
                    found.setdefault(_prose(text), (f"{place}.{name}", topic))
    return [(name, text, topic) for text, (name, topic) in sorted(found.items(), key=lambda item: item[1])]


def source_in(folder: Path) -> list[str | Path]:
    """Flags for the documents in a folder (the fixture `folder`), their names as ids and their topics as labels."""
    csv = folder / "documents.csv"
    return ["--source.uri", csv, "--source.text", "text", "--source.id", "name", "--source.labels", "topic"]


def _prose(text: str) -> str:
    """The words of a docstring up to its examples: its field is to be told by what it says, not by how code looks."""
    return re.sub(r"\s+", " ", re.split(r"\nExamples?\b|>>>", text)[0])[:1500]
