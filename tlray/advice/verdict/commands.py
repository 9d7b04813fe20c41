"""The commands that do what is advised, as one would type them."""

import re
import shlex
from pathlib import PurePosixPath

from tlray.advice.inputs.candidates import Candidate
from tlray.advice.measuring.trials import BATCH_SIZE, Attempt, recipe_of
from tlray.config import AdviseConfig, PreprocessingConfig, RecipeConfig, SourceConfig


def head_commands(config: AdviseConfig, candidate: Candidate, tap: str, *, some_fail: bool = False) -> list[str]:
    """Extract a table of a layer, and train a head on it, at last on the rows too that its decay was chosen by, as probes do.

    Args:
        config: of the advice.
        candidate: the network.
        tap: the layer.
        some_fail: whether images of the sample could not be read, so that others cannot either.
    """
    table = _name(config, candidate)
    extract = [
        "tlray",
        "extract",
        _word(config.source.uri),
        table,
        *_source_flags(config.source),
        *_recipe_flags(candidate.config),
    ]
    if tap != candidate.tap:
        extract += _flag("recipe.taps", tap)
    own = "folder" if config.labels == "folder" else config.source.labels if config.labels == "column" else "none"
    if own != "none":
        extract += _flag("source.labels", own)
    extract += [*_failing_flags("max_failed_fraction", config, some_fail), *_store_flags(config)]
    train = ["tlray", "train", table, f"{table}-head"]
    if own == "none":
        train += _flag("labels", config.labels)
    return [shlex.join(extract), shlex.join([*train, *_examples_flags(config), "--refit", *_store_flags(config)])]


def network_commands(config: AdviseConfig, attempt: Attempt, *, some_fail: bool = False) -> list[str]:
    """Train a network from images, as an attempt does; see `head_commands`."""
    network, recipe = attempt.network, recipe_of(attempt, config.seed)
    out = f"{_name(config, attempt.candidate)}-{attempt.kind}"
    train = ["tlray", "train", *_flag("source.uri", config.source.uri), "--out", out, *_source_flags(config.source)]
    train += _flag("labels", config.labels)
    if config.labels == "column":
        train += _flag("source.labels", config.source.labels)
    train += [*_recipe_flags(recipe), *_flag("network.freeze", network.freeze)]
    if attempt.kind == "scratch":
        train += ["--network.start", "scratch"]
    train += ["--network.learning-rate", f"{network.learning_rate:g}", "--network.backbone-rate", f"{network.backbone_rate:g}"]
    train += ["--network.augment", *(network.augment or ())]
    train += ["--epochs", str(config.epochs), "--patience", str(config.epochs), "--batch-size", str(BATCH_SIZE), "--local"]
    train += _failing_flags("network.max_failed_fraction", config, some_fail)
    return [shlex.join([*train, *_examples_flags(config), *_store_flags(config)])]


def _flag(key: str, *values: object) -> list[str]:
    """A key's flag with its values; one that begins with a dash is written so that it is none."""
    flag, texts = f"--{key.replace('_', '-')}", [str(value) for value in values]
    if any(text.startswith("-") for text in texts):
        return [f"{flag}={text}" for text in texts]
    return [flag, *texts]


def _word(path: str) -> str:
    """A source as a plain word."""
    return f"./{path}" if path.startswith("-") else path


def _failing_flags(key: str, config: AdviseConfig, some_fail: bool) -> list[str]:
    """What may fail of all images where some of the sample did: as much as of these, as the default may end the command."""
    return _flag(key, config.max_failed_fraction) if some_fail else []


def _store_flags(config: AdviseConfig) -> list[str]:
    """How the places are reached."""
    return _flag("stores", *config.stores) if config.stores else []


def _name(config: AdviseConfig, candidate: Candidate) -> str:
    """A name for what is made: that of the source and of the network."""
    source = PurePosixPath(config.source.uri.rstrip("/")).stem or "images"
    network = candidate.config.backbone.rpartition(":")[2]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "images" for text in (source, network))


def _source_flags(source: SourceConfig) -> list[str]:
    """What of a source is not at its default, its place and labels apart."""
    words: list[str] = []
    for key, value in source.model_dump(mode="json", exclude_defaults=True, exclude={"uri", "labels"}).items():
        name = f"source.{key}"
        words += (
            [f"--{name.replace('_', '-')}"] if value is True else _flag(name, *(value if isinstance(value, list) else [value]))
        )
    return words


def _recipe_flags(recipe: RecipeConfig) -> list[str]:
    words = _flag("recipe.backbone", recipe.backbone)
    if recipe.weights != "default":
        words += _flag("recipe.weights", recipe.weights)
    return words + _preprocessing_flags(recipe.preprocessing)


def _preprocessing_flags(preprocessing: PreprocessingConfig) -> list[str]:
    words: list[str] = []
    for key, value in preprocessing.model_dump(mode="json", exclude_none=True).items():
        name = f"recipe.preprocessing.{key}"
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            words += _flag(name, *(value if isinstance(value, list) else [value]))
    return words


def _examples_flags(config: AdviseConfig) -> list[str]:
    """What of labels and splits is not at its default."""
    words: list[str] = []
    if config.label_columns != ("label",):
        words += _flag("label_columns", *config.label_columns)
    for key, value in config.split.model_dump(mode="json", exclude_defaults=True).items():
        words += _flag(f"split.{key}", value)
    if config.skip:
        words += ["--skip", *config.skip]
    if config.seed:
        words += ["--seed", str(config.seed)]
    return words
