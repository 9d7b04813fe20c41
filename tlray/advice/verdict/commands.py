"""The commands that do what is advised, as one would type them."""

import re
import shlex
from pathlib import PurePosixPath

from tlray.advice.inputs.candidates import Candidate
from tlray.advice.measuring.trials import BATCH_SIZE, Attempt, recipe_of
from tlray.config import AdviseConfig, PreprocessingConfig, RecipeConfig, SourceConfig


def head_commands(config: AdviseConfig, candidate: Candidate, tap: str) -> list[str]:
    """Extract a table of a layer, and train a head on it, at last on the rows too that its decay was chosen by, as probes do.

    Args:
        config: of the advice.
        candidate: the network.
        tap: the layer.
    """
    table = _name(config, candidate)
    extract = ["tlray", "extract", config.source.uri, table, *_source_flags(config.source), *_recipe_flags(candidate.config)]
    if tap != candidate.tap:
        extract += ["--recipe.taps", tap]
    own = "folder" if config.labels == "folder" else config.source.labels if config.labels == "column" else "none"
    if own != "none":
        extract += ["--source.labels", own]
    train = ["tlray", "train", table, f"{table}-head"]
    if own == "none":
        train += ["--labels", config.labels]
    return [_joined(extract), _joined([*train, *_examples_flags(config), "--refit"])]


def network_commands(config: AdviseConfig, attempt: Attempt) -> list[str]:
    """Train a network from images, as an attempt does."""
    network, recipe = attempt.network, recipe_of(attempt, config.seed)
    out = f"{_name(config, attempt.candidate)}-{attempt.kind}"
    train = ["tlray", "train", "--source.uri", config.source.uri, "--out", out, *_source_flags(config.source)]
    train += ["--labels", config.labels]
    if config.labels == "column":
        train += ["--source.labels", config.source.labels]
    train += [*_recipe_flags(recipe), "--network.freeze", str(network.freeze)]
    if attempt.kind == "scratch":
        train += ["--network.start", "scratch"]
    train += ["--network.learning-rate", f"{network.learning_rate:g}", "--network.backbone-rate", f"{network.backbone_rate:g}"]
    train += ["--network.augment", *(network.augment or ())]
    train += ["--epochs", str(config.epochs), "--patience", str(config.epochs), "--batch-size", str(BATCH_SIZE), "--local"]
    return [_joined([*train, *_examples_flags(config)])]


def _joined(words: list[str]) -> str:
    return shlex.join(words)


def _name(config: AdviseConfig, candidate: Candidate) -> str:
    """A name for what is made: that of the source and of the network."""
    source = PurePosixPath(config.source.uri.rstrip("/")).stem or "images"
    network = candidate.config.backbone.rpartition(":")[2]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "images" for text in (source, network))


def _source_flags(source: SourceConfig) -> list[str]:
    """What of a source is not at its default, its place and labels apart."""
    words: list[str] = []
    for key, value in source.model_dump(mode="json", exclude_defaults=True, exclude={"uri", "labels"}).items():
        flag = f"--source.{key.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [flag] if value is True else [flag, *map(str, values)]
    return words


def _recipe_flags(recipe: RecipeConfig) -> list[str]:
    words = ["--recipe.backbone", recipe.backbone]
    if recipe.weights != "default":
        words += ["--recipe.weights", recipe.weights]
    return words + _preprocessing_flags(recipe.preprocessing)


def _preprocessing_flags(preprocessing: PreprocessingConfig) -> list[str]:
    words: list[str] = []
    for key, value in preprocessing.model_dump(mode="json", exclude_none=True).items():
        name = f"recipe.preprocessing.{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _examples_flags(config: AdviseConfig) -> list[str]:
    """What of labels and splits is not at its default."""
    words: list[str] = []
    if config.label_columns != ("label",):
        words += ["--label-columns", *config.label_columns]
    for key, value in config.split.model_dump(mode="json", exclude_defaults=True).items():
        words += [f"--split.{key.replace('_', '-')}", str(value)]
    if config.skip:
        words += ["--skip", *config.skip]
    if config.seed:
        words += ["--seed", str(config.seed)]
    return words
