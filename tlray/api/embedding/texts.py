"""From whatever a Python user calls a text to the text that an encoder takes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tlray.api.embedding.images import only_column
from tlray.errors import ConfigError, ImageError, ImageErrorCode
from tlray.lake.source.texts.decode import decode_text

OneText = str | None
"""A text, or the value that stands for a missing one."""

_SHOWN_CHARACTERS = 40


class TextInputs:
    """Texts for `tlray.api.embedding.running.Runner`: taken apart, named, and checked by the rule that tables are made by."""

    def each(self, given: Any) -> Iterator[OneText]:
        """The texts of anything that holds some, in order.

        Args:
            given: a text, an array, a column of a data frame, or an iterable of these, generators included.

        Raises:
            ConfigError: something that is no text and holds none.
        """
        if given is None or (isinstance(given, float) and np.isnan(given)):
            yield None
        elif isinstance(given, str):
            yield str(given)
        elif hasattr(given, "columns") and hasattr(given, "iloc"):
            yield from self.each(only_column(given, "texts'"))
        elif hasattr(given, "as_py"):
            yield from self.each(given.as_py())
        elif isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray, memoryview, Mapping, os.PathLike)):
            for one in given:
                yield from self.each(one)
        else:
            raise ConfigError(f"{type(given).__name__} is no text; expected texts (str), one or several of them")

    def name_of(self, position: int, text: OneText) -> str:
        """A text in a message: its position among those given, and how it begins."""
        shown = "" if text is None else ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
        return f"input {position} ({shown})" if shown else f"input {position}"

    def label_of(self, position: int, text: OneText) -> str:
        """A text in a table of predictions."""
        return self.name_of(position, text)

    def prepare(self, text: OneText) -> str:
        """The text as it is embedded.

        Raises:
            ImageError: it is missing, blank, or none that could be stored.
        """
        if text is None:
            raise ImageError(ImageErrorCode.EMPTY, "no text")
        return decode_text(text.encode("utf-8", "surrogatepass"))

    def join(self, texts: list[Any]) -> np.ndarray:
        """Several of them as an array of objects."""
        joined = np.empty(len(texts), object)
        joined[:] = texts
        return joined
