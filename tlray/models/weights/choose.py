"""Which tensors of a file are a network's; where several sets of them are, the user chooses."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from tlray.errors import WeightsError
from tlray.models.weights.candidates import TOP, Candidate, chosen, find_candidates, wrapped_tables
from tlray.models.weights.digest import State
from tlray.models.weights.files import WeightsFile
from tlray.models.weights.fit import Fit, shown
from tlray.models.weights.spec import WeightsSpec

Convert = Callable[[State], State]
"""From names and sizes of other libraries, other versions and other image sizes to a network's own; the library's. Gives the
same object where it has nothing to convert."""

_COUNTS = "num_batches_tracked"  # of batch norms: embeddings do not depend on it, and old files lack it


def choose(
    spec: WeightsSpec, places: Sequence[str], file: WeightsFile, module: nn.Module, convert: Convert, heads: Sequence[str]
) -> Fit:
    """The tensors of a file that are a network's.

    Args:
        spec: of the file.
        places: of those in the file that the user named.
        file: what it holds.
        module: the network.
        convert: the library's.
        heads: first parts of the names of the network's classifiers.

    Returns:
        The only ones that fit, or those that fit best.

    Raises:
        WeightsError: several fit and are not the same, or the places are not there.
    """
    if spec.by_order:
        return _by_order(places, file, module, heads)
    fits: list[Fit] = []
    for candidates in (find_candidates(file.tables, _names(module)), wrapped_tables(file.tables)):
        fits += [fit_of(one, module, convert, heads) for one in chosen(candidates, places)]
        if complete := [fit for fit in fits if _is_complete(fit, spec)]:
            return _only(complete, file)
    if not fits:
        raise WeightsError(
            f"{file.where} has no weights at {', '.join(places)}; it has tensors at: {_shown_places(file.tables)}"
        )
    return min(fits, key=lambda fit: (len(fit.unfilled), len(fit.strange)))


def fit_of(candidate: Candidate, module: nn.Module, convert: Convert, heads: Sequence[str]) -> Fit:
    """How a candidate fits as the library converts it, or as it is where that is better."""
    converted = convert(candidate.state)
    fit = Fit.of(candidate, converted, module, heads)
    if converted is candidate.state or not (fit.unfilled or fit.strange):
        return fit
    plain = Fit.of(candidate, candidate.state, module, heads)
    return min(fit, plain, key=lambda one: len(one.unfilled) + len(one.strange))


def misfit(fit: Fit, spec: WeightsSpec, file: WeightsFile, module: nn.Module) -> str:
    """The message for tensors that are not the network's: what is missing, of another shape or unknown, and what to do."""
    ours = module.state_dict()
    if not spec.by_order and any(_fits_by_order(table, ours) for table in file.tables.values()):
        advice = "its tensors fit by position: add #order to match them so"
    elif fit.strange and fit.fills_all_but_heads:
        text = ",".join((*spec.options, "partial"))
        advice = f"it may be of another network; where it is not, {file.where}#{text} leaves the unexpected ones out"
    else:
        advice = "use a file of this backbone"
    place = f" at {fit.candidate.place}" if fit.candidate.place else ""
    total = sum(len(table) for table in file.tables.values())
    return (
        f"{file.where} does not fit{place}: it has {total} tensors, the backbone {len(ours)}; "
        f"{'; '.join(fit.problems())}. {advice}"
    )


def _is_complete(fit: Fit, spec: WeightsSpec) -> bool:
    return fit.fills_all_but_heads and (spec.is_partial or not fit.strange)


def _only(fits: Sequence[Fit], file: WeightsFile) -> Fit:
    """The one there is, where those that hold the same numbers count as one."""
    different: list[Fit] = []
    for fit in fits:
        if not any(_is_same(fit.state, other.state) for other in different):
            different.append(fit)
    if len(different) > 1:
        raise _several([fit.candidate.name for fit in different], "that fit", file)
    return different[0]


def _several(places: Sequence[str], which: str, file: WeightsFile, *options: str) -> WeightsError:
    choices = " or ".join(f"{file.where}#{','.join((*options, place))}" for place in places[:2])
    return WeightsError(f"{file.where} has {len(places)} sets of weights {which}: {shown(places)}; choose one, as {choices}")


def _is_same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def _names(module: nn.Module) -> list[str]:
    return [name for name in module.state_dict() if not name.endswith(_COUNTS)]


def _shown_places(places: Iterable[str]) -> str:
    return shown(place or TOP for place in places)


def _fits_by_order(table: State, ours: State) -> bool:
    return [tensor.shape for tensor in table.values()] == [tensor.shape for tensor in ours.values()]


def _by_order(places: Sequence[str], file: WeightsFile, module: nn.Module, heads: Sequence[str]) -> Fit:
    """Tensors matched by position; every shape is checked."""
    ours = module.state_dict()
    tables = chosen((Candidate(place, table) for place, table in file.tables.items()), places)
    fitting = [table for table in tables if _fits_by_order(table.state, ours)]
    if len(fitting) > 1:
        raise _several([table.name for table in fitting], "that fit by position", file, "order")
    if not fitting:
        largest = max((table.state for table in tables), key=len, default={})
        raise WeightsError(
            f"{file.where} does not fit by position: {_first_difference(ours, largest)}; use a file of this backbone"
        )
    named = Candidate(fitting[0].place, dict(zip(ours, fitting[0].state.values(), strict=True)))
    return Fit.of(named, named.state, module, heads)


def _first_difference(ours: State, state: State) -> str:
    if len(ours) != len(state):
        return f"it has {len(state)} tensors, the backbone {len(ours)}"
    pairs = zip(ours.items(), state.items(), strict=True)
    index, ((our_key, our), (key, tensor)) = next(
        (i, pair) for i, pair in enumerate(pairs) if pair[0][1].shape != pair[1][1].shape
    )
    return f"tensor {index} is {key} {tuple(tensor.shape)}, the backbone's is {our_key} {tuple(our.shape)}"
