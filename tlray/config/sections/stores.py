"""The key `stores`: which account and endpoint reaches which places, where not all are reached alike.

What a command was told holds for its process, and for the workers of its Ray cluster, until it ends: stores are opened by URI
alone, in many rooms, and a worker opens the same ones.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from tlray.config.identity import NOT_IDENTITY
from tlray.config.sections.section import Section
from tlray.errors import ConfigError

_SWITCHES = ("anonymous", "requester_pays")
_VALUES = ("profile", "endpoint_url", "region")
_WEB = ("https://", "http://")
_WEB_SWITCHES = ("private", "unencrypted")
_WEB_VALUES = ("connections",)
_EXAMPLE = '"s3://lake/ profile=lake endpoint_url=https://s3.example.org"'


@dataclass(frozen=True)
class StoreAccess:
    """How the places below a prefix are reached; what is not said comes from AWS's own sources.

    Attributes:
        prefix: `s3://bucket/` or longer, or `https://`, `http://` or longer; it ends in `/`.
        profile: of AWS's files: credentials, and all else that a profile says.
        endpoint_url: of a server that is not AWS's.
        region: of the bucket.
        anonymous: requests are not signed, as public buckets take them.
        requester_pays: we pay for the requests.
        private: of the web: servers there may have private, loopback or link-local addresses.
        unencrypted: of the web: `http://` is fine there.
        connections: of the web: most at once from each process to each host.
    """

    prefix: str
    profile: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    private: bool = False
    unencrypted: bool = False
    connections: int = 4


def store_access(text: str) -> StoreAccess:
    """Read one entry of `stores`, such as `s3://lake/ profile=lake endpoint_url=https://s3.example.org`.

    Raises:
        ValueError: it is not one; the message says what was expected.
    """
    prefix, *words = text.split() or [""]
    is_web = prefix.startswith(_WEB)
    if not is_web and (not prefix.startswith("s3://") or prefix == "s3://"):
        raise ValueError(f"expected an S3 prefix or a web address and how it is reached, such as {_EXAMPLE}")
    values, switches = (_WEB_VALUES, _WEB_SWITCHES) if is_web else (_VALUES, _SWITCHES)
    found: dict[str, str | bool | int] = {}
    for word in words:
        name, equals, value = word.partition("=")
        is_known = (name in values and value) or (name in switches and not equals)
        if not is_known or name in found:
            known = ", ".join([*(f"{each}=..." for each in values), *switches])
            raise ValueError(f"{word!r} of {prefix} is {'given twice' if name in found else 'unknown'}; expected {known}")
        found[name] = _connections(value, prefix) if name == "connections" else value if equals else True
    if "anonymous" in found and ("profile" in found or "requester_pays" in found):
        raise ValueError(f"{prefix} is anonymous, so it has neither a profile nor somebody who pays")
    return StoreAccess(prefix if prefix.endswith("/") else f"{prefix}/", **found)  # type: ignore[arg-type]


def _connections(text: str, prefix: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"connections={text} of {prefix}: expected a whole number, at least 1")
    return int(text)


class WithStores(Section):
    """What every command has that reads or writes places."""

    stores: Annotated[tuple[str, ...], NOT_IDENTITY] = Field(
        (),
        description="S3 prefixes that are reached in another way than AWS's own settings say, each with profile=NAME, "
        "endpoint_url=URL, region=NAME, anonymous or requester_pays; web addresses with private, unencrypted or "
        "connections=N; the longest prefix counts",
    )

    @field_validator("stores")
    @classmethod
    def _are_read(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        said: dict[str, StoreAccess] = {}
        for access in map(store_access, texts):
            if said.setdefault(access.prefix, access) != access:
                raise ValueError(f"{access.prefix} is given twice, in two ways; say once how it is reached")
        return texts


_in_use: tuple[StoreAccess, ...] = ()
_calls = 0
_lock = threading.Lock()
"""Held while either of the two above changes: a program may call from several threads."""


def stores_in_use() -> tuple[StoreAccess, ...]:
    """The entries of `stores` that this process was told of."""
    return _in_use


def use_stores(stores: Sequence[StoreAccess]) -> None:
    """Tell this process, as a worker is told when it starts."""
    global _in_use  # as the environment is, which it stands in for
    _in_use = _longest_first(stores)


def _longest_first(stores: Iterable[StoreAccess]) -> tuple[StoreAccess, ...]:
    return tuple(sorted(stores, key=lambda each: -len(each.prefix)))


@contextmanager
def using(texts: Sequence[str]) -> Iterator[None]:
    """Have a command's `stores` hold while it runs; without any it goes by what holds already.

    Raises:
        ConfigError: another call of this process is under way with others, and would read or write by these.
    """
    global _in_use, _calls
    if not texts:
        yield
        return
    stores = _longest_first(map(store_access, texts))
    with _lock:
        if _in_use not in ((), stores):
            raise ConfigError(
                "another call in this process is under way with other stores; wait for its end, give both calls the same "
                "stores, or run one of them in a process of its own"
            )
        _in_use, _calls = stores, _calls + 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                _in_use = ()


def access_of(uri: str) -> StoreAccess | None:
    """How a place is reached: by the longest prefix that it is below; None where nobody said."""
    folder = uri if uri.endswith("/") else f"{uri}/"
    return next((each for each in _in_use if folder.startswith(each.prefix)), None)
