"""Where a model of open_clip comes from: its configuration and its tensors, by what the user or a recipe names."""

import copy
import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import HF_HUB_PREFIX
from open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_hf,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)

from tlray.errors import BackboneError, SourceError, WeightsError, first_line
from tlray.models.libraries.library import Request
from tlray.models.process.shared_change import SharedChange
from tlray.models.weights.fetched import find_file
from tlray.models.weights.files import WeightsFile, read_weights
from tlray.models.weights.spec import FILE_SUFFIXES, FetchFile, WeightsSpec, is_folder

CONFIG = "open_clip_config.json"

DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError)
"""What open_clip raises where something cannot be downloaded."""

_PREFIX = "openclip:"
_QUICK = "-quickgelu"
_OF_FOLDER = "config-"
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """A model that was found, before it is built.

    Attributes:
        backbone: its full name, for the recipe.
        weights: likewise; what finds the same again.
        model: open_clip's configuration of both towers.
        preprocess: what it says of images' preparation.
        tokenizer: what `open_clip.get_tokenizer` takes for it; None for the files beside the weights.
        files: address of the folder of these files, and what fetches them.
        read: its tensors; None for random ones.
        seed: of random ones.
        notes: for people.
    """

    backbone: str
    weights: str
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    tokenizer: str | None
    files: tuple[str, FetchFile] | None = None
    read: Callable[[], WeightsFile] | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()


def find_source(request: Request, fetch: FetchFile) -> Source:
    """Find a model's configuration and its weights.

    Raises:
        BackboneError: there is no such model.
        WeightsError: there are no such weights.
    """
    if request.weights.startswith(_PREFIX):  # as a recipe has them
        return _same(_of_name(request.weights.removeprefix(_PREFIX), fetch), request)
    spec = WeightsSpec.parse(request.weights)
    if spec.kind == "library":
        name = request.model if spec.location == "default" else f"{request.model}/{spec.location}"
        return _of_name(name, fetch)
    if spec.kind == "random":
        found = _described(request.model, fetch)
        name = f"{_PREFIX}{request.model}" if is_folder(request.model) else found.backbone
        return replace(found, backbone=name, weights=spec.text, read=None, seed=int(spec.location))
    folder = spec.location.rpartition("/")[0] if spec.location.lower().endswith(FILE_SUFFIXES) else spec.location.rstrip("/")
    if spec.kind == "file" and find_file(f"{folder}/{CONFIG}", fetch):
        found = replace(_of_folder(folder, fetch), weights=spec.text, read=lambda: read_weights(spec, fetch))
        return _same(found, request)
    if request.model.startswith(_OF_FOLDER):
        read_weights(spec, fetch)  # says what is wrong with them, where that is it
        raise WeightsError(
            f"{spec.text} has no {CONFIG} beside it, which {_PREFIX}{request.model} is named by; give the folder"
        )
    return replace(_described(request.model, fetch), weights=spec.text, read=lambda: read_weights(spec, fetch))


def _same(found: Source, request: Request) -> Source:
    """Weights of the model that the backbone names; none of another."""
    if request.model.startswith(HF_HUB_PREFIX):
        return replace(found, backbone=f"{_PREFIX}{request.model.partition('@')[0]}")
    if found.backbone == f"{_PREFIX}{request.model}" or found.notes:
        return found
    raise BackboneError(
        f"{request.weights} holds {found.backbone}, but the backbone is {_PREFIX}{request.model}; give {found.backbone}"
    )


def _described(name: str, fetch: FetchFile) -> Source:
    """A model without weights of its own: `ViT-B-32`, with a tag prepared as for that one's, or what has files of its own."""
    if name.startswith(HF_HUB_PREFIX) or is_folder(name):
        return _of_name(name, fetch)
    model, config, cfg, notes = _configured(name)
    return Source(f"{_PREFIX}{model}", "", config, cfg, model, notes=notes)


def _configured(name: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any], tuple[str, ...]]:
    """A model of open_clip's own as weights need it that its name has a tag of.

    Returns:
        Its name, open_clip's configurations of it and of these weights, the latter empty without a tag, and notes for people.
    """
    model, tag = _split(name)
    config = open_clip.get_model_config(model)
    if config is None:
        raise _no_model(model)
    cfg = get_pretrained_cfg(model, tag) if tag else {}
    if tag and not cfg:
        raise _no_weights(model, f"has no weights {tag!r}")
    if not cfg.get("quick_gelu") or config.get("quick_gelu"):
        return model, config, cfg, ()
    # open_clip itself only warns, and computes other numbers.
    quick = f"{model}{_QUICK}"
    note = f"{_PREFIX}{name} was trained with QuickGELU, which open_clip calls {quick}"
    return quick, dict(config, quick_gelu=True), cfg, (note,)


def _of_name(name: str, fetch: FetchFile) -> Source:
    """A model with the weights that its name means."""
    if name.startswith(HF_HUB_PREFIX):
        return _of_hub(name.removeprefix(HF_HUB_PREFIX))
    if is_folder(name):
        return _of_folder(name, fetch)
    model, config, cfg, notes = _configured(name)
    tags = list_pretrained_tags_by_model(model)
    if not cfg:
        raise _no_weights(model, "has several weights" if tags else "has no published weights")
    tag = next(known for known in tags if get_pretrained_cfg(model, known) == cfg)

    def read() -> WeightsFile:
        try:
            with quiet:
                path = download_pretrained(cfg)
        except DOWNLOAD_ERRORS as error:
            raise WeightsError(
                f"weights {_PREFIX}{model}/{tag} could not be had from {cfg.get('hf_hub') or cfg.get('url')}: "
                f"{first_line(error)}; check the network, or give a copy of the file as recipe.weights"
            ) from error
        return read_weights(WeightsSpec("file", str(path)), Path)

    return Source(f"{_PREFIX}{model}", f"{_PREFIX}{model}/{tag}", config, cfg, model, read=read, notes=notes)


def _no_weights(model: str, what: str) -> WeightsError:
    tags = list_pretrained_tags_by_model(model)
    return WeightsError(
        f"{_PREFIX}{model} {what}; its tags: {', '.join(tags) or 'none'}. Give one, as "
        f"{_PREFIX}{model}/{tags[0] if tags else '<tag>'}, or recipe.weights: a file, a folder or random:<seed>"
    )


def _of_folder(location: str, fetch: FetchFile) -> Source:
    folder = location.rstrip("/")
    path = find_file(f"{folder}/{CONFIG}", fetch)
    if path is None:
        raise WeightsError(f"{location} has no {CONFIG}, which says what model of open_clip it is; give a folder with one")
    model, preprocess = _read_config(path, location)
    return Source(
        f"{_PREFIX}{name_of(model)}",
        location,
        model,
        preprocess,
        None,
        (folder, fetch),
        lambda: read_weights(WeightsSpec("file", location), fetch),
    )


def _of_hub(name: str) -> Source:
    repository, _, revision = name.partition("@")
    try:
        with quiet:
            path = Path(download_pretrained_from_hf(repository, filename=CONFIG, revision=revision or None))
    except DOWNLOAD_ERRORS as error:
        raise BackboneError(
            f"{_PREFIX}{HF_HUB_PREFIX}{name} could not be had from the hub: {first_line(error)}; check the name and the "
            f"network, or give a copy as a folder ({_PREFIX}./folder)"
        ) from error
    commit = path.parent.name  # of the cache: .../snapshots/<commit>/<file>
    model, preprocess = _read_config(path, f"{HF_HUB_PREFIX}{repository}")
    full = f"{HF_HUB_PREFIX}{repository}"

    def fetch(address: str) -> Path:
        try:
            found: str = download_pretrained_from_hf(repository, filename=address.rpartition("/")[2], revision=commit)
        except DOWNLOAD_ERRORS as error:
            raise SourceError(f"{full} has no {address}: {first_line(error)}") from error
        return Path(found)

    def read() -> WeightsFile:
        return read_weights(WeightsSpec("file", str(fetch("open_clip_pytorch_model.bin"))), Path)  # or its safetensors

    return Source(f"{_PREFIX}{full}", f"{_PREFIX}{full}@{commit}", model, preprocess, None, (full, fetch), read)


@contextmanager
def _quiet() -> Iterator[None]:
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_is_not_of_root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_is_not_of_root)
        root.removeHandler(handler)


quiet = SharedChange(_quiet)
"""Without open_clip's own lines, which go to the root logger and say of towers that are filled later that they are random.

Python's logging gives a root logger without handlers one that prints, at the first such line; so it has one meanwhile."""


def _is_not_of_root(_record: logging.LogRecord) -> bool:
    """A logger's filter sees what is logged by itself alone, and not what comes from those below it."""
    return False


def _read_config(path: Path, where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        document = json.loads(path.read_bytes())
        model, preprocess = document["model_cfg"], document.get("preprocess_cfg") or {}
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{where}: {CONFIG} has no model_cfg: {first_line(error)}; fetch the folder again") from error
    return model, preprocess


def name_of(model: Mapping[str, Any]) -> str:
    """The name of a folder's configuration: open_clip's own where it has the same, else one that its content gives."""
    for name in open_clip.list_models():
        if open_clip.get_model_config(name) == model:
            return str(name)
    canonical = json.dumps(model, sort_keys=True, separators=(",", ":"))
    return f"{_OF_FOLDER}{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def _split(name: str) -> tuple[str, str]:
    """A model and its tag; `ViT-B/32` is what the papers call `ViT-B-32`."""
    models = set(open_clip.list_models())
    if name.replace("/", "-") in models:
        return name.replace("/", "-"), ""
    model, _, tag = name.rpartition("/") if "/" in name else (name, "", "")
    return model.replace("/", "-"), tag


def _no_model(model: str) -> BackboneError:
    models = open_clip.list_models()
    plain = {name.lower().replace("_", "-"): name for name in models}
    near = [plain[key] for key in difflib.get_close_matches(model.lower().replace("_", "-"), list(plain), n=_SHOWN, cutoff=0.5)]
    return BackboneError(
        f"there is no backbone '{_PREFIX}{model}'; near ones: {', '.join(f'{_PREFIX}{name}' for name in near) or 'none'} "
        f"(open_clip {open_clip.__version__} has {len(models)})"
    )


def towers_config(source: Source, kept: str, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model's configuration with the tower that is not needed made as small as can be, so that it costs nothing.

    Args:
        source: the model.
        kept: `vision_cfg` or `text_cfg`.
        model: its configuration where that is not the source's own.
    """
    config: dict[str, Any] = copy.deepcopy(dict(model or source.model))
    config["vision_cfg"]["timm_model_pretrained"] = False
    config["text_cfg"]["hf_model_pretrained"] = False
    if kept == "vision_cfg":
        config.pop("multimodal_cfg", None)
        config["text_cfg"] = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    else:
        config["vision_cfg"] = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
    return config
