"""From bytes to text: right as Python's own codecs have it, or a failed row."""

import codecs

import pytest

from tlray.errors import ImageError, SourceError
from tlray.lake.source.texts.decode import check_encoding, decode_text

GOOD = [
    "plain",
    "line\r\nline\n",
    "😀 👩‍👩‍👧",
    "שלום עולם",
    "مرحبا",
    "e\u0301",
    "\u202eright to left",
    "x" * 1_000_000,
    "tab\tand\x0bother",
    "½ µ ß",
]


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
     (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be")],
)  # fmt: skip
def test_a_text_is_what_it_was_before_it_was_encoded(text: str, mark: bytes, encoding: str) -> None:
    assert decode_text(mark + text.encode(encoding)) == text


def test_a_declared_encoding_is_used_and_a_mark_wins() -> None:
    assert decode_text("Größe".encode("latin-1"), "latin-1") == "Größe"
    assert decode_text("Größe".encode("cp1252"), "cp1252") == "Größe"
    assert decode_text(codecs.BOM_UTF8 + "Größe".encode(), "latin-1") == "Größe"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("Größe".encode("latin-1"), "corrupt"),
        ("\ud83d".encode("utf-8", "surrogatepass"), "corrupt"),
        (b"a\x00b", "corrupt"),
        ("no mark".encode("utf-16-le"), "corrupt"),
        (codecs.BOM_UTF16_LE + b"a", "corrupt"),
        (b"\xc0\x80", "corrupt"),
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (codecs.BOM_UTF8, "empty"),
        ("\u00a0\u2003".encode(), "empty"),
    ],
)
def test_what_is_no_text_has_its_code(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_text(data)
    assert caught.value.code == code


@pytest.mark.parametrize("encoding", ["no-such", "base64", "rot13", ""])
def test_an_encoding_that_is_none_is_refused(encoding: str) -> None:
    with pytest.raises(SourceError, match=r"source\.encoding"):
        check_encoding(encoding)
