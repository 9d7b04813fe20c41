"""Which names below a prefix are taken: what include and exclude say, and what is left out unless it is asked for.

Left out by default, as other tools make them beside the images:

- names that begin with a dot, of files or folders (`._cat.jpg`, `.ipynb_checkpoints/`, `.git/`);
- names that begin with an underscore (`_SUCCESS`, `_delta_log/`, `__MACOSX/`), but for those that cameras give: one that is set
  to Adobe RGB calls its pictures `_DSC0002.JPG` (DCF 2.0, JEITA CP-3461: four characters of A-Z, 0-9 and `_`, then a number
  of four digits);
- names whose ending says that no decoder can make an image of them (`.txt`, `.json`, `Thumbs.db`). Names without an ending, or
  with an unknown one, are taken: their bytes tell.

A pattern of `include` that names such a name itself (`_raw/**`, `.thumbs/*.jpg`, `*.txt`) takes what it matches, and opens
nothing else; `source.also` opens a whole rule. A source may also name its files itself, by a pattern of numbers (`expanded`).
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pathspec import GitIgnoreSpec

from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.listing.report import LeftOutReason, ListingReport

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jxl", ".heic", ".heif",
})  # fmt: skip
"""Lower-case endings of names that mean an image, those included that will only get a row that says why not."""

_OTHER_ENDINGS = (
    "txt", "md", "rst", "rtf", "pdf", "doc", "docx", "odt", "xls", "xlsx", "ods", "ppt", "pptx",
    "csv", "tsv", "json", "jsonl", "ndjson", "geojson", "xml", "xmp", "yaml", "yml", "toml", "ini", "cfg", "conf", "log", "aae",
    "html", "htm", "css", "js", "py", "pyc", "ipynb", "sh", "bat", "ps1", "cpp", "hpp", "java",
    "zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar",
    "parquet", "arrow", "feather", "avro", "orc", "npy", "npz", "mat", "pkl", "pickle", "h5", "hdf5", "tfrecord", "lmdb", "mdb",
    "db", "sqlite", "sqlite3", "pt", "pth", "ckpt", "safetensors", "onnx",
    "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "3gp", "mts", "m2ts", "wmv", "flv",
    "mp3", "wav", "m4a", "flac", "aac", "ogg", "srt", "vtt",
    "md5", "sha1", "sha256", "crc", "sig", "asc", "torrent", "lnk", "url", "exe", "dll", "so", "crdownload",
)  # fmt: skip
"""Endings of text, tables, archives, models, film and sound: nothing that an image library could open."""

_OTHER_NAMES = ("README", "LICENSE", "LICENCE", "COPYING", "CHANGELOG", "MD5SUMS", "SHA1SUMS", "SHA256SUMS", "CHECKSUMS")

_OTHER_NAME = rf"(?i)(?:\.(?:{'|'.join(_OTHER_ENDINGS)})|(?:^|/)(?:{'|'.join(_OTHER_NAMES)}))$"
"""A name that no image has; the same in Python's and in Arrow's (RE2) dialect."""

_COMMON_ENDING = r"\.(?:jpe?g|JPE?G|png|PNG|webp)$"
"""The ending of most names, and found in a sixth of the time that the many others take."""

_EITHER = r"(?:^|/)[._]"
_HIDDEN = r"(?:^|/)\."
_UNDERSCORE = r"(?:^|/)_"
_UNDERSCORE_FOLDER = r"(?s)(?:^|/)_.*/"
_CAMERA_NAME = r"(?i)(?:^|/)_[A-Z0-9_]{3}[0-9]{4}(?:[^A-Z0-9/][^/]*)?$"
"""A DCF file name that begins with an underscore, or what was made of it (`_DSC0002-2.jpg`, `_MG_0003 (1).JPG`)."""

_RULES: dict[str, LeftOutReason] = {"hidden": "hidden", "underscore": "underscore", "any_ending": "ending"}
"""What each value of `source.also` opens."""


_NAMED: dict[LeftOutReason, str] = {"hidden": _HIDDEN, "underscore": _UNDERSCORE, "ending": _OTHER_NAME}
"""What a pattern that names such names itself looks like."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class NameFilter:
    """Which relative paths are taken, by the section `source` of a config.

    Args:
        config: `include`, `exclude`, `also` and `match_case` are used.
        suffixes: of the files that hold images or texts, lower-case, where those are listed; none where images are.
    """

    def __init__(self, config: SourceConfig, suffixes: tuple[str, ...] = ()) -> None:
        def spec(patterns: Iterable[str]) -> GitIgnoreSpec | None:
            lines = [pattern if config.match_case else _any_case_of_ending(pattern) for pattern in patterns]
            return GitIgnoreSpec.from_lines(lines) if lines else None

        named = [pattern for pattern in config.include if not pattern.startswith("!")]
        takes_back = any(pattern.startswith("!") for pattern in config.exclude)
        self._include = spec(config.include)
        self._exclude = spec(config.exclude)
        self._exclude_folders = None if takes_back else spec(map(_folder_pattern, config.exclude))
        self._suffixes = suffixes
        self._rules = {reason for name, reason in _RULES.items() if name not in config.also}
        self._named: dict[LeftOutReason, GitIgnoreSpec | None] = {
            reason: spec(pattern for pattern in named if re.search(rule, pattern)) for reason, rule in _NAMED.items()
        }

    def takes(self, relative: pa.Array, report: ListingReport | None = None) -> np.ndarray:
        """Tell which paths the rules let through.

        Args:
            relative: N paths of files, relative to the prefix.
            report: is told of the others.

        Returns:
            N bools.
        """
        taken = np.ones(len(relative), bool)
        for reason, is_caught in self._caught(relative, taken):
            if is_caught.any():
                taken &= ~is_caught
                if report is not None:
                    first = relative[int(np.argmax(is_caught))].as_py()
                    report.leave_out(reason, first, int(np.count_nonzero(is_caught)))
        return taken

    def why_not_enter(self, folder: str) -> LeftOutReason | None:
        """Tell why nothing in a folder can be taken; None where something may be.

        Args:
            folder: its relative path, which ends in `/`.
        """
        if self._exclude_folders is not None and self._exclude_folders.match_file(folder):
            return "exclude"
        for reason, pattern in (("hidden", _HIDDEN), ("underscore", _UNDERSCORE)):
            if reason in self._rules and self._named[reason] is None and re.search(pattern, folder):
                return reason
        return None

    def _caught(self, relative: pa.Array, taken: np.ndarray) -> Iterator[tuple[LeftOutReason, np.ndarray]]:
        """What each rule catches of the paths that are `taken` when it is asked."""
        if not self._rules.isdisjoint(("hidden", "underscore")) and _matches(relative, _EITHER).any():
            yield "hidden", self._unless_named("hidden", relative, taken & _matches(relative, _HIDDEN))
            yield "underscore", self._unless_named("underscore", relative, taken & self._has_underscore(relative))
        if self._suffixes:
            lower = pc.ascii_lower(relative)
            is_one = np.logical_or.reduce([np.asarray(pc.ends_with(lower, suffix), bool) for suffix in self._suffixes])
            yield "other_format", taken & ~is_one
        elif "ending" in self._rules and (uncommon := taken & ~_matches(relative, _COMMON_ENDING)).any():
            yield "ending", self._unless_named("ending", relative, uncommon & _matches(relative, _OTHER_NAME))
        if self._exclude is not None:
            yield "exclude", _matched(self._exclude, relative, taken)
        if self._include is not None:
            yield "include", taken & ~_matched(self._include, relative, taken)

    def _has_underscore(self, relative: pa.Array) -> np.ndarray:
        begins = _matches(relative, _UNDERSCORE)
        if not self._suffixes:
            begins &= _matches(relative, _UNDERSCORE_FOLDER) | ~_matches(relative, _CAMERA_NAME)
        return begins

    def _unless_named(self, rule: LeftOutReason, relative: pa.Array, caught: np.ndarray) -> np.ndarray:
        """Those of the paths that a rule catches that no pattern of `include` names; none where the rule is opened."""
        named = self._named[rule]
        if rule not in self._rules:
            return np.zeros(len(caught), bool)
        return caught if named is None or not caught.any() else caught & ~_matched(named, relative, caught)


def is_other_name(name: str) -> bool:
    """Whether a name says that its file is no image."""
    return re.search(_OTHER_NAME, name) is not None


def expanded(uri: str) -> list[str]:
    """The files of a brace pattern: `x-{000..012}.tar` is thirteen names, as wide as the first number."""
    braces = _BRACES.search(uri)
    if braces is None:
        return [uri]
    numbers = range(int(braces[1]), int(braces[2]) + 1)
    names = [f"{uri[: braces.start()]}{number:0{len(braces[1])}}{uri[braces.end() :]}" for number in numbers]
    if not names:
        raise SourceError(f"{uri} names no file: {braces[0]} runs backwards")
    return [file for name in names for file in expanded(name)]


def _matches(relative: pa.Array, pattern: str) -> np.ndarray:
    return np.asarray(pc.match_substring_regex(relative, pattern), bool)


def _matched(spec: GitIgnoreSpec, relative: pa.Array, asked: np.ndarray) -> np.ndarray:
    """Which of the paths that are asked for a spec matches."""
    matched = np.zeros(len(relative), bool)
    positions = np.flatnonzero(asked)
    paths = relative.to_pylist() if len(positions) == len(relative) else relative.take(pa.array(positions)).to_pylist()
    matched[positions] = [spec.match_file(path) for path in paths]
    return matched


def _folder_pattern(pattern: str) -> str:
    """The pattern of the folders all of whose content another one matches: `a/**` and `a/*` match all that is in `/a/`."""
    for ending in ("/**", "/*"):
        if pattern.rstrip().endswith(ending):
            return f"/{pattern.rstrip().removesuffix(ending).lstrip('/')}/"
    return pattern


def _any_case_of_ending(pattern: str) -> str:
    """A pattern of which an ending after a wildcard (`*.jpg`) matches in any case; cameras write `.JPG`."""
    found = re.fullmatch(r"(?s)(.*[*?\]][^/]*?\.)([A-Za-z0-9]+)(\s*)", pattern)
    if found is None:
        return pattern
    ending = "".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter for letter in found[2])
    return found[1] + ending + found[3]
