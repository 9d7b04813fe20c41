"""Where a network of transformers comes from: its configuration and its tensors, by what the user or a recipe names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from tlray.errors import BackboneError, WeightsError, first_line
from tlray.models.libraries.huggingface.checkpoint.files import CONFIG, ModelFiles, folder_files, hub_files
from tlray.models.libraries.library import Request
from tlray.models.process.shared_change import SharedChange
from tlray.models.weights.files import WeightsFile, read_weights
from tlray.models.weights.spec import FILE_SUFFIXES, FetchFile, WeightsSpec, is_folder

READ_ERRORS = (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError)
"""What transformers raises for configurations that it cannot read."""

_PREFIX = "hf:"


@dataclass(frozen=True)
class Source:
    """A network that was found, before it is built.

    Attributes:
        backbone: its full name, for the recipe.
        weights: likewise; what finds the same again.
        config: of transformers.
        files: beside its weights, where there are some: how images are prepared, and the tokeniser.
        read: its tensors; None for random ones.
        seed: of random ones.
    """

    backbone: str
    weights: str
    config: PretrainedConfig
    files: ModelFiles | None
    read: Callable[[], WeightsFile] | None
    seed: int = 0


def find_source(request: Request, fetch: FetchFile) -> Source:
    """Find a network's configuration, which says what it is, and its weights.

    Raises:
        BackboneError: there is no such model, or it is none of transformers'.
        WeightsError: there are no such weights.
    """
    name, backbone = request.model, f"{_PREFIX}{request.model.partition('@')[0]}"
    if request.weights.startswith(_PREFIX):
        files = hub_files(request.weights.removeprefix(_PREFIX))
        return _of_files(backbone, files, request)
    spec = WeightsSpec.parse(request.weights)
    if spec.kind == "library":
        if spec.location != "default":
            raise WeightsError(
                f"hf:{name} has no weights {spec.location!r}: leave recipe.weights out, or give a folder, a file of "
                "safetensors, hf:<organisation>/<name> or random:<seed>"
            )
        return _of_files(backbone, _own_files(name, fetch), request)
    if spec.kind == "random":
        own = _own_files(name, fetch) if _has_files(name) else None
        config = read_config(own) if own else _usual_config(name)
        return Source(backbone, spec.text, config, own, None, int(spec.location))
    files = _files_of(spec, name, fetch)
    return replace(_of_files(backbone, files, request), weights=spec.text, read=lambda: read_weights(spec, fetch))


def read_config(files: ModelFiles) -> PretrainedConfig:
    """The configuration in a model's folder, by a class of transformers; code that comes with a model is never run.

    Raises:
        BackboneError: it is none of transformers' own.
        WeightsError: there is none.
    """
    kind = files.config().get("model_type")
    try:
        with files.copied([CONFIG]) as folder, quiet:
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except READ_ERRORS as error:
        raise BackboneError(
            f"{files.weights} holds a {kind!r}, which transformers {transformers.__version__} cannot build by itself; code "
            f"that comes with a model is never run ({first_line(error)})"
        ) from error
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    level, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bar:
            transformers_logging.enable_progress_bar()


quiet = SharedChange(_quiet)
"""Without transformers' own reports and progress bars: what matters of them is said in tlray's words."""


def _of_files(backbone: str, files: ModelFiles, request: Request) -> Source:
    """A network that is described and filled by the files of one place."""
    config = read_config(files)
    name = request.model
    if is_folder(name):
        backbone = f"{_PREFIX}{config.model_type}"
    elif "/" not in name and config.model_type != name:
        raise BackboneError(
            f"{files.weights} holds a {config.model_type}, but the backbone is hf:{name}; give hf:{config.model_type}"
        )
    return Source(backbone, files.weights, config, files, lambda: read_weights(WeightsSpec("file", files.address), files.fetch))


def _has_files(name: str) -> bool:
    return is_folder(name) or "/" in name


def _own_files(name: str, fetch: FetchFile) -> ModelFiles:
    """The files of the folder or repository that a backbone's name names."""
    if is_folder(name):
        return folder_files(name, fetch)
    if "/" in name:
        return hub_files(name)
    raise WeightsError(
        f"hf:{name} is a kind of model and has no weights of its own: give recipe.weights (a folder, a file, "
        "hf:<organisation>/<name> or random:<seed>), or a backbone hf:<organisation>/<name> or hf:./folder"
    )


def _files_of(spec: WeightsSpec, name: str, fetch: FetchFile) -> ModelFiles:
    """What is beside weights that are given for themselves; where that is no configuration, what the backbone's name names."""
    if spec.kind == "package":
        address = str(read_weights(spec, fetch).path.parent)
    elif spec.location.lower().endswith(FILE_SUFFIXES):
        address = spec.location.rpartition("/")[0] or "."
    else:
        address = spec.location.rstrip("/")
    beside = ModelFiles(address, spec.text, fetch)
    if beside.find(CONFIG) is not None:
        return beside
    if _has_files(name):
        return _own_files(name, fetch)
    read_weights(spec, fetch)  # says what is wrong with them, where that is it
    raise WeightsError(
        f"{spec.text} has no {CONFIG} beside it, which says what network it is; give a folder as the Hugging Face hub has it"
    )


def _usual_config(kind: str) -> PretrainedConfig:
    """The configuration of a kind of model, as transformers has it by default."""
    try:
        config: PretrainedConfig = AutoConfig.for_model(kind)
    except READ_ERRORS as error:
        raise BackboneError(
            f"there is no kind of model {kind!r} in transformers {transformers.__version__}; expected "
            "hf:<organisation>/<name>, hf:./folder, or a kind as hf:dinov2"
        ) from error
    return config
