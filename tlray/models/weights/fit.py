"""How tensors of a file fit a network: strict about what embeddings depend on, and nothing left out without a word."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlray.models.weights.candidates import Candidate
from tlray.models.weights.digest import State, hash_tensors

_SHOWN = 5

_BESIDE = re.compile(
    r"((aux|decode|decoder|text|queue|loss|optimizer|momentum|ema|teacher|student)\w*"
    r"|(head|heads|fc|classifier|cls|cls_head|last_linear|linear|logits|proj|projector|projection|predictor|prototypes"
    r"|bbox_head|rpn_head|roi_head|neck|criterion|mask_token|logit_scale|logit_bias|n_averaged|AuxLogits)\d*(_dist)?)"
)
"""First parts of the names of what networks have beside or above their layers: classifiers of any form, projectors of
self-supervised training, decoders, text towers, what trainers keep. Where a backbone has no tensor in a part of such a name,
its embeddings cannot depend on that part."""


@dataclass(frozen=True)
class Fit:
    """How the tensors of a candidate fit a network.

    Attributes:
        candidate: of the file.
        state: what is loaded, by the network's names; shapes fit.
        missing: the network's tensors that the file does not have.
        wrong: those that it has in another shape or type, each with both, for messages.
        strange: tensors of the file that the network has no place for, and that may belong to another network.
        left_out: those that do not matter.
        resized: tensors as they were before the library brought them to another size of images (position embeddings), by name.
        heads: first parts of the names of the network's classifiers.
    """

    candidate: Candidate
    state: State
    missing: tuple[str, ...]
    wrong: Mapping[str, str]
    strange: tuple[str, ...]
    left_out: tuple[str, ...]
    resized: State
    heads: tuple[str, ...]

    @classmethod
    def of(cls, candidate: Candidate, converted: State, module: nn.Module, heads: Sequence[str]) -> "Fit":
        """Compare tensors with a network's: names, shapes and types.

        Args:
            candidate: of the file.
            converted: its tensors, by the network's names.
            module: the network.
            heads: first parts of the names of its classifiers.
        """
        ours = module.state_dict()
        state: dict[str, Tensor] = {}
        missing: list[str] = []
        wrong: dict[str, str] = {}
        for name, tensor in ours.items():
            theirs = converted.get(name)
            if theirs is not None and theirs.shape == tensor.shape and _is_readable(theirs, tensor):
                state[name] = theirs
            elif not tensor.is_floating_point():
                continue  # a constant that the network makes itself, as tables of positions are, or a count of batches
            elif theirs is None:
                missing.append(name)
            else:
                wrong[name] = f"{name} {_described(theirs)} for {_described(tensor)}"
        extra = [name for name in converted if name not in ours]
        parts = {_part(name) for name in ours} - set(heads)
        strange = tuple(name for name in extra if _may_belong(name, converted[name], parts, heads))
        before = {name: candidate.state[name] for name in state if name in candidate.state}
        resized = {name: tensor for name, tensor in before.items() if _differ(tensor, state[name])}
        left_out = tuple(name for name in extra if name not in strange)
        return cls(candidate, state, tuple(missing), wrong, strange, left_out, resized, tuple(heads))

    @property
    def unfilled(self) -> tuple[str, ...]:
        """The network's tensors that the file does not fill."""
        return (*self.missing, *self.wrong)

    @property
    def fills_all_but_heads(self) -> bool:
        """Whether nothing is missing but, perhaps, the classifier."""
        return all(_part(name) in self.heads for name in self.unfilled)

    def load(self, module: nn.Module) -> str:
        """Put the tensors into a network; what the file does not fill becomes not a number.

        So nothing is computed from it by mistake: what depends on it is not a number either.

        Args:
            module: the one that was compared.

        Returns:
            The hash of what was loaded: of resized tensors as they were before, as resizing does not give the same last bits
            on every machine, and of the network's own constants too.
        """
        ours = module.state_dict()
        named: OrderedDict[str, Tensor] = OrderedDict(self.state)
        # Files do not keep the modules' versions, without which some (MnasNet) refuse to load.
        named._metadata = getattr(ours, "_metadata", {})  # type: ignore[attr-defined]
        module.load_state_dict(named, strict=False)
        with torch.no_grad():
            for name in self.unfilled:
                ours[name].fill_(torch.nan)
        loaded = {name: tensor for name, tensor in ours.items() if name not in self.unfilled}
        before = {name: tensor.to(ours[name].dtype) for name, tensor in self.resized.items()}
        return hash_tensors((loaded | before).items())

    def problems(self) -> list[str]:
        """What keeps the tensors from being the network's, each with its count and the first names."""
        found = {
            "of another shape": tuple(self.wrong.values()),
            "missing": self.missing,
            "unexpected": self.strange,
        }
        return [f"{len(names)} {title}: {shown(names)}" for title, names in found.items() if names]

    def notes(self, total: int) -> list[str]:
        """What was done to make the tensors fit, for people.

        Args:
            total: tensors in the file.
        """
        notes = []
        if self.candidate.place:
            notes.append(f"taken from {self.candidate.place}")
        others = total - len(self.candidate.state)
        if others > 0:
            notes.append(f"left out {others} tensors elsewhere in the file")
        if extra := (*self.left_out, *self.strange):
            notes.append(f"left out {len(extra)} tensors that the backbone has no place for ({shown(extra)})")
        if self.unfilled:
            notes.append(f"left without values what it does not fill, and embeddings do not need ({shown(self.unfilled)})")
        for name, tensor in self.resized.items():
            ours = tuple(self.state[name].shape)
            notes.append(
                f"{name} resized " + (f"from {tuple(tensor.shape)} to {ours}" if tensor.shape != ours else "to another grid")
            )
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in self.state.values() if tensor.is_floating_point()}
        if other := sorted(kinds - {"float32"}):
            notes.append(f"stored as {', '.join(other)}, computed with as float32")
        return notes


def shown(names: Iterable[str]) -> str:
    """The first few of some names, for messages."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _part(name: str) -> str:
    return name.partition(".")[0]


def _is_readable(theirs: Tensor, ours: Tensor) -> bool:
    """Whether values can be taken over: dense, and floating where the network's are (int8 ones were quantised)."""
    is_plain = theirs.layout == torch.strided and not theirs.is_quantized
    return is_plain and theirs.is_floating_point() == ours.is_floating_point()


def _differ(before: Tensor, after: Tensor) -> bool:
    return before is not after and not torch.equal(before, after)


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _may_belong(name: str, tensor: Tensor, parts: set[str], heads: Sequence[str]) -> bool:
    """Whether a tensor that the network has no place for may be one that embeddings depend on, in another network.

    What lies within one of the network's own parts may (squeeze-and-excitation in a block that has none), and so may parts that
    no convention names.
    """
    part = _part(name)
    if not tensor.is_floating_point() or part in heads:
        return False
    return part in parts or not _BESIDE.fullmatch(part)
