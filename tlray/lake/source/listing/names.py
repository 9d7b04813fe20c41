"""Which names below a prefix the user wants."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pathspec import GitIgnoreSpec

_HIDDEN = r"(^|/)[._]"


class Globs:
    """Which relative paths the user wants, by patterns as in .gitignore.

    Names that begin with `.` or `_`, of files or folders, are left out unless a pattern of `include` names one itself
    (`_raw/**`): they are other tools' own (`._cat.jpg`, `.ipynb_checkpoints/`, `_delta_log/`).
    """

    def __init__(self, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        self._include = GitIgnoreSpec.from_lines(include) if include else None
        self._exclude = GitIgnoreSpec.from_lines(exclude) if exclude else None
        self._takes_hidden = any(re.search(_HIDDEN, pattern) for pattern in include)

    def keeps(self, relative: pa.Array) -> pa.Array:
        """Of N relative paths, N bools."""
        keeps = pa.array(np.ones(len(relative), bool))
        if not self._takes_hidden:
            keeps = pc.invert(pc.match_substring_regex(relative, _HIDDEN))
        if self._include or self._exclude:
            keeps = pc.and_(keeps, pa.array([self._matches(path) for path in relative.to_pylist()], pa.bool_()))
        return keeps

    def _matches(self, path: str) -> bool:
        if self._include and not self._include.match_file(path):
            return False
        return not (self._exclude and self._exclude.match_file(path))
