"""Loading an application of Keras: with its published weights, those of a file, or random ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tlray.errors import ConfigError, WeightsError, first_line
from tlray.models.libraries.keras.applications import APPLICATIONS, preparation
from tlray.models.libraries.keras.loading.files import SUFFIXES, fetch_file, is_keras_file
from tlray.models.libraries.keras.loading.pretrained import as_pretrained, probe_of
from tlray.models.libraries.keras.runtime import Keras, KerasFailure, import_keras, run_apart
from tlray.models.libraries.keras.translation.translate import Translation, translate
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.libraries.zoo.modules import described
from tlray.models.weights.digest import hash_weights
from tlray.models.weights.files import read_weights
from tlray.models.weights.fit import shown
from tlray.models.weights.spec import FetchFile, WeightsSpec
from tlray.recipe import Preprocessing

IMAGENET = "imagenet"
"""Keras' name of the published weights, of which each application has one set."""

_PUBLISHED = ("default", IMAGENET, f"keras:{IMAGENET}")


def load_application(request: Request, fetch: FetchFile) -> Pretrained:
    """One of Keras' applications with its weights, as a torch module.

    It has its classifier where images are of the application's own size; at any other size, as in Keras' tutorials, it has none
    (`include_top=False`), and its maps are averaged (`pooling="avg"`).

    Args:
        request: of a model in APPLICATIONS.
        fetch: brings the URI or path of a file to a local path.

    Raises:
        WeightsError: the weights are missing or do not fit.
        ConfigError: Keras is not installed, or the network cannot have images of that size.
    """
    keras = import_keras(f"backbone keras:{request.model}")
    spec = WeightsSpec.parse(request.weights)
    height, width = request.crop or (APPLICATIONS[request.model].side,) * 2
    loading = _Loading(
        keras, request.model, spec, preparation(APPLICATIONS[request.model].mode, height, width), _source(spec, request, fetch)
    )
    translation, has_top = loading.load()
    return as_pretrained(
        translation,
        backbone=f"keras:{request.model}",
        weights=f"keras:{IMAGENET}" if spec.kind == "library" else spec.text,
        weights_sha256=hash_weights(translation.module),
        preprocessing=loading.preprocessing,
        notes=(*loading.notes(has_top), *([] if request.is_prepared else loading.assumed())),
    )


_Source = Path | Mapping[str, Tensor] | None
"""A file of Keras', tensors that tlray has trained, or nothing: published or random ones."""


def _source(spec: WeightsSpec, request: Request, fetch: FetchFile) -> _Source:
    if spec.kind == "random":
        return None
    if spec.kind == "library":
        if spec.location in _PUBLISHED:
            return None
        raise WeightsError(
            f"keras:{request.model} has no weights {spec.location!r}; it has: {IMAGENET}. Name these, a file (path or URI of "
            f"{', '.join(SUFFIXES)}), package:<name>/<file> or random:<seed>"
        )
    if spec.options:
        raise WeightsError(f"weights {spec.text}: files of Keras have no options; leave #{','.join(spec.options)} out")
    if spec.kind == "package" or is_keras_file(spec.location):
        return fetch_file(spec, fetch)
    return dict(read_weights(spec, fetch).tables.get("", {}))


@dataclass(frozen=True)
class _Loading:
    keras: Keras
    model: str
    spec: WeightsSpec
    preprocessing: Preprocessing
    source: _Source

    def load(self) -> tuple[Translation, bool]:
        """The network, and whether it has its classifier: that of a file where the file has it."""
        seed = int(self.spec.location) if self.spec.kind == "random" else 0
        tops = (False,) if not self._is_of_own_size else (True,) if self.source is None else (True, False)
        misfits = []
        for has_top in tops:
            try:
                return run_apart(self.keras, self._work(has_top), seed), has_top
            except KerasFailure as failure:
                misfits.append(failure)
        raise self._error(misfits[0]) from misfits[0]

    def _error(self, failure: KerasFailure) -> ConfigError:
        """What is wrong where Keras cannot load it: the file, the size, the application itself, or the way to its weights."""
        name, version, what = f"keras:{self.model}", self.keras.__version__, first_line(failure).rstrip(".")
        if self.source is not None:
            which = "weights of this application"
            if not self._is_of_own_size:
                which += f" without its classifier (_notop), which it has at {APPLICATIONS[self.model].side} pixels alone"
            return WeightsError(
                f"{self.spec.text} does not fit {name}: {what}; use {which}, or give the whole model as backbone: keras:<file>"
            )
        if self._is_built():
            return WeightsError(
                f"weights {IMAGENET} of {name} could not be had: {what}; check the network, or give a copy of the file as "
                f"recipe.weights (a path or URI of {', '.join(SUFFIXES)})"
            )
        if self._is_of_own_size:
            return ConfigError(
                f"Keras {version} cannot build {name}: {what}; use another application, or another version of Keras"
            )
        (height, width), side = self.preprocessing.crop, APPLICATIONS[self.model].side
        return ConfigError(f"{name} cannot take images of crop {height}x{width}; expected {side}x{side}: {what}")

    def _is_built(self) -> bool:
        """Whether Keras can build the network, so that it is the published weights that it cannot have."""
        if self.spec.kind == "random":
            return False
        bare = replace(self, spec=WeightsSpec("random", "0"))
        try:
            run_apart(self.keras, lambda: bare._model(self._is_of_own_size))
        except KerasFailure:
            return False
        return True

    def notes(self, has_top: bool) -> Sequence[str]:
        """What of the application was left out, for people."""
        if has_top:
            return []
        side = APPLICATIONS[self.model].side
        why = f"{self.spec.text} has none" if self._is_of_own_size else f"which takes images of {side}x{side} alone"
        return [f"keras:{self.model} is built without its classifier: {why}"]

    def assumed(self) -> Sequence[str]:
        """What weights of a file do not say."""
        if self.source is None:
            return []
        return [
            f"{self.spec.text} does not say how its images are to be prepared; assumed: as for the published weights of "
            f"keras:{self.model} ({described(self.preprocessing)}). Where that is wrong, give recipe.preprocessing"
        ]

    @property
    def _is_of_own_size(self) -> bool:
        return self.preprocessing.crop == (APPLICATIONS[self.model].side,) * 2

    def _work(self, has_top: bool) -> Callable[[], Translation]:
        def work() -> Translation:
            model = self._model(has_top)
            if isinstance(self.source, Path):
                model.load_weights(str(self.source))
            translation = translate(self.keras, model, probe_of(self.preprocessing))
            if isinstance(self.source, Mapping):
                _fill(translation.module, self.source)
            return translation

        return work

    def _model(self, has_top: bool) -> Any:
        is_published = self.spec.kind == "library"
        arguments: dict[str, Any] = {"weights": IMAGENET if is_published else None, "include_top": has_top}
        if not has_top:
            arguments["pooling"] = "avg"
        if not (is_published and has_top):
            arguments["input_shape"] = (*self.preprocessing.crop, 3)
        return getattr(self.keras.applications, self.model)(**arguments)


def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put tensors in that tlray has saved of such a network.

    Raises:
        ValueError: they are another network's.
    """
    ours = module.state_dict()
    wrong = [name for name, tensor in ours.items() if name not in state or state[name].shape != tensor.shape]
    wrong += [name for name in state if name not in ours]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors are missing, of another shape or unexpected ({shown(wrong)})")
    module.load_state_dict(state)
