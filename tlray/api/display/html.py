"""What a notebook shows: small pictures with their captions, as one piece of HTML that needs nothing else."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from html import escape
from typing import Any

from tlray.errors import ImageError, TlrayError
from tlray.search.service.backend.images.decoding import DecodingLimits
from tlray.search.service.backend.images.thumbnails import Thumbnails

WAIT_SECONDS = 5.0
"""Pictures that a slow store has not given by then are left out: a cell of a notebook is to end."""

MAX_IMAGE_PIXELS = 64_000_000
_SIDE = 112
_THREADS = 8
_BOX = f"display:inline-block;width:{_SIDE}px;margin:4px;vertical-align:top;font-size:11px;overflow-wrap:anywhere"
_EMPTY = f"width:{_SIDE}px;height:{_SIDE}px;background:#8883;display:flex;align-items:center;justify-content:center"

Picture = tuple[str, str | None, str]
"""URI, the version of its bytes, and the caption."""


def gallery(heading: str, pictures: Sequence[Picture]) -> str:
    """Thumbnails in a row, under a heading."""
    return galleries([(heading, pictures)])


def galleries(rows: Iterable[tuple[str, Sequence[Picture]]]) -> str:
    """Rows of thumbnails, each under its heading; a picture that cannot be had says why."""
    rows = list(rows)
    images = _images([picture for _, pictures in rows for picture in pictures])
    parts = []
    for heading, pictures in rows:
        parts.append(f"<div><b>{escape(heading)}</b></div><div>")
        for uri, etag, caption in pictures:
            name = uri.rsplit("/", 1)[-1]
            text = f"{escape(caption)}<br>{escape(name)}" if caption else escape(name)
            parts.append(f'<div style="{_BOX}" title="{escape(uri, quote=True)}">{images[uri, etag]}<div>{text}</div></div>')
        parts.append("</div>")
    return "".join(parts)


def keys_and_values(heading: str, document: Mapping[str, Any]) -> str:
    """Render a mapping as an HTML table of two columns."""
    rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in document.items())
    return f"<div><b>{escape(heading)}</b></div><table>{rows}</table>"


def rows_of(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table, a line each row."""
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ("".join(f"<td>{escape(_text(row[name]))}</td>" for name in names) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><b>{escape(heading)}</b></div><table><tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _images(pictures: Sequence[Picture]) -> dict[tuple[str, str | None], str]:
    thumbnails = Thumbnails(DecodingLimits(MAX_IMAGE_PIXELS))
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails")
    futures = {(uri, etag): threads.submit(_image, thumbnails, uri, etag) for uri, etag, _ in pictures}
    done, _ = wait(futures.values(), WAIT_SECONDS)
    threads.shutdown(wait=False, cancel_futures=True)
    return {key: future.result() if future in done else _empty("slow") for key, future in futures.items()}


def _image(thumbnails: Thumbnails, uri: str, etag: str | None) -> str:
    try:
        data = base64.b64encode(thumbnails.get(uri, etag)).decode()
    except ImageError as error:
        return _empty(error.code)
    except TlrayError as error:
        return _empty(type(error).__name__)
    return f'<img style="max-width:{_SIDE}px;max-height:{_SIDE}px" src="data:image/jpeg;base64,{data}">'


def _empty(reason: str) -> str:
    return f'<div style="{_EMPTY}">{escape(reason)}</div>'
