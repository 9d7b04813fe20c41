"""Heads: what is trained on top of a tap's vectors.

Shape legend: B rows, D inputs (the length of a vector), K outputs.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from tlray.predictor import later_at_default

HeadKind = Literal["linear", "mlp"]


_FIRST_FIELDS = ("kind", "inputs", "outputs", "hidden", "dropout")
"""What a `HeadSpec` of version 0.1 has."""


class HeadSpec(BaseModel):
    """The shape of a head; with the state dict it is the whole head.

    Attributes:
        kind: one linear layer, or layers with ReLU and dropout between them.
        inputs: D.
        outputs: K.
        hidden: widths of an MLP's hidden layers; empty for a linear head.
        dropout: probability, after each hidden layer, in training alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: HeadKind
    inputs: PositiveInt
    outputs: PositiveInt
    hidden: tuple[PositiveInt, ...] = ()
    dropout: float = Field(0.0, ge=0, lt=1)

    def to_json(self) -> str:
        """The document that ids of models are made of; a field that came later is not in it while it has its default."""
        return self.model_dump_json(exclude=later_at_default(self, _FIRST_FIELDS))


class Head(nn.Module):
    """Standardise, then layers: `scores_BK = layers((features_BD - mean_D) * scale_D)`.

    Args:
        spec: its shape.

    Attributes:
        spec: likewise.
        mean_D: buffer, subtracted; 0 until set.
        scale_D: buffer, multiplied; 1 until set.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = (spec.inputs, *spec.hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(spec.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], spec.outputs))
        weight = self.linears[0].weight
        self.register_buffer("mean_D", weight.new_zeros(spec.inputs))
        self.register_buffer("scale_D", weight.new_ones(spec.inputs))

    @classmethod
    def of(cls, spec: HeadSpec) -> "Head":
        """A head with torch's default initialisation, drawn from torch's global generator."""
        return cls(spec)

    @classmethod
    def to_be_filled(cls, spec: HeadSpec) -> "Head":
        """A head whose parameters are still to be set, say by `load_state_dict`; torch's global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            return cls(spec)

    @property
    def linears(self) -> list[nn.Linear]:
        """The head's linear layers, from its input to its scores."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, features_BD: Tensor) -> Tensor:
        """scores_BK: logits, or the values of a regression."""
        scores_BK: Tensor = self.layers((features_BD - self.mean_D) * self.scale_D)
        return scores_BK
