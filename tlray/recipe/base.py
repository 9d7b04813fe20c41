"""What recipes of images and of texts have in common: where the numbers come from, and one fingerprint."""

import hashlib
import json
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Compute = Literal["fp32", "bf16", "fp16", "int8"]
Storage = Literal["full", "half"]

NORM_FLOOR = 1e-12
"""Least L2 norm that a vector is divided by where a recipe normalises, as `torch.nn.functional.normalize` has it."""


class Strict(BaseModel):
    """Base of the documents that tables keep: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Precision(Strict):
    """Number formats: `compute` on the device, `storage` in the table (half keeps 10 mantissa bits of float32)."""

    compute: Compute = Field(
        "bf16", description="number format in which the network computes, int8 on CPUs alone; of texts fp32 if not given"
    )
    storage: Storage = Field("half", description="of stored vectors: half keeps 10 mantissa bits, full all 23")


class BaseRecipe(Strict):
    """Everything that changes an embedding's numbers, but what depends on whether images or texts are embedded.

    Attributes:
        backbone: `<library>:<name>`.
        weights: where the weights came from; for people, not part of the fingerprint, as a file may move.
        weights_sha256: of the weights as loaded, wherever they came from.
        taps: the layers whose outputs are kept; `<layer>:input` means what goes into that layer.
        normalize: whether embeddings are divided by their L2 norm.
        precision: number formats.
    """

    not_identity: ClassVar[dict[str, Any]] = {"weights": True}
    """The fields that the fingerprint leaves out, as pydantic's `exclude` takes them."""

    backbone: str
    weights: str
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    taps: tuple[str, ...] = Field(min_length=1)
    normalize: bool = False
    precision: Precision = Precision()

    @property
    def recipe_id(self) -> str:
        """Sha256, in hex, of the canonical JSON (sorted keys, no spaces) of all fields but where files are."""
        document = self.model_dump(mode="json", exclude=self.not_identity)
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def columns(self) -> dict[str, str]:
        """Table column of each tap: `embedding` for a single one, else `embedding_<tap>` with `_` for odd characters."""
        if len(self.taps) == 1:
            return {self.taps[0]: "embedding"}
        return {tap: "embedding_" + re.sub(r"[^0-9A-Za-z]+", "_", tap) for tap in self.taps}

    @property
    def measures(self) -> tuple[str, ...]:
        """Columns of numbers that say how well an item could be embedded, one number a row."""
        return ()

    def under_rule_of(self, there: "BaseRecipe") -> Self:  # noqa: ARG002  # there is such a rule for images alone
        """The same recipe under the rule from bytes to the network's input that another one follows."""
        return self

    def differences(self, other: "BaseRecipe") -> list[str]:
        """The fields that differ, each as `field: ours, theirs`, for an error that a person can act on."""
        ours, theirs = _flat(self), _flat(other)
        return [
            f"{key}: {ours.get(key)!r}, {theirs.get(key)!r}"
            for key in dict.fromkeys([*ours, *theirs])
            if ours.get(key) != theirs.get(key)
        ]


def _flat(model: BaseModel, prefix: str = "") -> dict[str, object]:
    """All fields of a document and of those within it, those at their default too, by dotted names; tuples as lists."""
    flat: dict[str, object] = {}
    for key in type(model).model_fields:
        value = getattr(model, key)
        if isinstance(value, BaseModel):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
