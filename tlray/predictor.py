"""What a table holds in place of embeddings: predictions, by a model that is a recipe and what comes after it."""

import hashlib
import json
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Task = Literal["single", "multi", "regression"]
"""One label an image, any number of labels, or numbers."""

HEAD_SCORES = "scores"
"""Under this name a trained head's scores stand beside the features; no embedding column is called so."""


def later_at_default(document: BaseModel, first: Collection[str]) -> set[str]:
    """The fields of a document that came after its first version and have their default.

    Args:
        document: of which an id is made.
        first: the fields that every id is made of.
    """
    fields = type(document).model_fields
    later = fields.keys() - set(first)
    return {name for name in later if getattr(document, name) == fields[name].get_default(call_default_factory=True)}


class HeadFile(BaseModel):
    """A trained head, of which every table of its predictions keeps a copy.

    Attributes:
        sha256: of the safetensors file.
        spec_json: its layers, as `tlray.models.layers.heads.HeadSpec` reads them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    spec_json: str

    @property
    def name(self) -> str:
        """The name of the copy of the head beside a table's log."""
        return f"head-{self.sha256}.safetensors"


_FIRST_FIELDS = ("format", "model", "column", "head", "task", "classes", "top_k", "threshold", "embeddings")
"""What an `Output` of version 0.1 has."""


class Output(BaseModel):
    """From a recipe's features to a table's columns.

    Attributes:
        format: version of this document.
        model: where the model came from; for people, not part of the model's id, as a folder may move.
        column: which of the recipe's features go into the head; without head, they are the scores themselves.
        head: what was trained on top; None for the network's own classifier.
        task: what the scores mean.
        classes: names of the outputs, K.
        top_k: labels kept of each image, at most K.
        threshold: of the probability, where an image may have several labels.
        embeddings: features that are kept beside the predictions.
        templates: of a head that was made of the classes' names in place of being trained, the sentences around each name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    model: str
    column: str
    head: HeadFile | None = None
    task: Task
    classes: tuple[str, ...] = Field(min_length=1)
    top_k: PositiveInt
    threshold: float = Field(gt=0, lt=1)
    embeddings: tuple[str, ...] = ()
    templates: tuple[str, ...] = Field((), exclude_if=lambda templates: not templates)

    def model_id(self, recipe_id: str) -> str:
        """Sha256, in hex, of the canonical JSON of a recipe's id and all fields but `model`.

        Of fields that came after version 0.1 those alone count that are not at their default, so that a new one leaves the
        tables that exist what they are.
        """
        document = {
            "recipe_id": recipe_id,
            "output": self.model_dump(mode="json", exclude={"model", *later_at_default(self, _FIRST_FIELDS)}),
        }
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def scores(self) -> str:
        """Where the scores are among what the encoder gives."""
        return HEAD_SCORES if self.head else self.column

    @property
    def lengths(self) -> dict[str, int]:
        """Floats in each row of the columns of numbers, embeddings apart."""
        return {"values": len(self.classes)} if self.task == "regression" else {"top_probabilities": self.top_k}

    def describe(self) -> dict[str, object]:
        """For `tlray show`: the classes, of which there may be thousands, as their number."""
        return self.model_dump(mode="json") | {"classes": len(self.classes)}

    def differences(self, other: "Output | None") -> list[str]:
        """The fields that differ, each as `field: ours, theirs`; long values shortened."""
        ours = self.model_dump(mode="json", exclude={"model"})
        theirs = other.model_dump(mode="json", exclude={"model"}) if other else {}
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return [f"{name}: {_short(ours.get(name))}, {_short(theirs.get(name))}" for name in names]


_SHOWN_CHARACTERS = 80


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
