"""The one rule from bytes to text, its version 1 (`tlray.recipe.texts.TextRecipe.text_rule`).

A byte order mark says how a text is encoded, else the source does, else it is UTF-8. Nothing is guessed, nothing
replaced: what cannot be decoded has no text. It is taken as it stands: line ends, control characters, any form of Unicode.
"""

import codecs

from tlray.errors import ImageError, ImageErrorCode, SourceError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_encoding(encoding: str) -> None:
    """Refuse an encoding that Python does not know.

    Raises:
        SourceError: it does not.
    """
    try:
        is_of_text = codecs.lookup(encoding)._is_text_encoding
    except LookupError:
        is_of_text = False
    if not is_of_text:
        raise SourceError(f"source.encoding is {encoding!r}; expected an encoding that Python knows, such as utf-8 or latin-1")


def decode_text(data: bytes, encoding: str = "utf-8") -> str:
    """The text of a file or of a row.

    Args:
        data: its bytes.
        encoding: where no byte order mark says another.

    Raises:
        ImageError: `empty`, blank or nothing at all; `corrupt`, not of its encoding, or with a NUL character in it.
    """
    encoding = next((named for mark, named in _MARKS if data.startswith(mark)), encoding)
    try:
        text = data.decode(encoding)
    except UnicodeError as error:
        advice = "" if encoding != "utf-8" else "; where it is of another encoding, say so with source.encoding"
        raise ImageError(ImageErrorCode.CORRUPT, f"not {encoding}: {error}{advice}") from error
    if "\x00" in text:
        raise ImageError(ImageErrorCode.CORRUPT, "a NUL character is in it: no text, or UTF-16 without its byte order mark")
    if not text.strip():
        raise ImageError(ImageErrorCode.EMPTY, f"{len(data)} bytes, of which none is of a letter or sign")
    return text
