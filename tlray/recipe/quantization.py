"""How a network of a recipe at int8 is rounded: found once, when a table is made, and kept in its recipe file."""

import hashlib
import json
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from tlray.recipe.base import Strict

Ranges = Mapping[str, tuple[float, float]]
"""The least and the largest value of each tensor that is rounded, by its name in the network's ONNX document."""


class Quantization(Strict):
    """What all that compute a table at int8 must have in common.

    Attributes:
        ranges: from which the scale and the zero point of each tensor follow.
        sha256: of the ranges, as `digest_of` has it.
        golden: per column, the embeddings of the golden images at int8, B rows of D floats.
        least_cosine: of the probe images' embeddings to those at fp32, when the table was made; for people.
    """

    ranges: dict[str, tuple[float, float]] = Field(min_length=1)
    sha256: str
    golden: dict[str, list[list[float]]]
    least_cosine: float

    @model_validator(mode="after")
    def _is_as_made(self) -> Self:
        if (found := digest_of(self.ranges)) != self.sha256:
            raise ValueError(f"its ranges were changed: their sha256 is {found[:12]}, expected {self.sha256[:12]}")
        return self


def digest_of(ranges: Ranges) -> str:
    """Sha256, in hex, of ranges as canonical JSON."""
    canonical = json.dumps({name: list(pair) for name, pair in ranges.items()}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
