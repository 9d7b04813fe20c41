"""A network trained from images or activations: what is trained on what, decided before Ray or this process does it."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.config import ExamplesConfig, GridConfig, PreprocessingConfig, RecipeConfig, TrainConfig
from tlray.errors import ConfigError
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.place.lease import Lease
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.models.backbones.images import resolve_backbone
from tlray.recipe import IMAGE_RULES, Recipe, of_images
from tlray.training.examples.examples import Examples, read_examples
from tlray.training.examples.examples_file import encode_examples, write_examples
from tlray.training.examples.labels import columns_asked
from tlray.training.examples.listed_images import list_images
from tlray.training.examples.table_vectors import read_rows
from tlray.training.model.loggers import Loggers
from tlray.training.model.model import ModelCard, model_exists, read_card
from tlray.training.model.rerun import Identity, config_identity, whole_weights
from tlray.training.network.learner.cut import choose_cut
from tlray.training.network.processes import Alone
from tlray.training.network.saved.checkpoints import Checkpoints, delete_folder, folder_exists
from tlray.training.network.saved.fingerprint import fingerprint
from tlray.training.network.worker import Job, checkpoints_of, run_folder, work


class NetworkTraining:
    """The training of a network; see `tlray.training.train.Training`. The same command goes on with a run that was ended.

    Args:
        config: of the command, with `network`, and with whole URIs.

    Raises:
        ConfigError: the input is wrong; nothing was started.
    """

    def __init__(self, config: TrainConfig) -> None:
        assert config.network is not None
        _check(config)
        self.config = config
        table = None if config.table is None else Table.open(config.table, config.table_version)
        backbone = resolve_backbone(_recipe_config(config, table), local_copy)
        if backbone.fixed:
            raise ConfigError(f"{backbone.recipe.backbone} cannot be trained: {backbone.fixed}; train a head (without network)")
        if backbone.recipe.precision.compute == "int8":
            raise ConfigError(
                "recipe.precision.compute is int8, and a network that is trained is not calibrated; give a recipe at bf16 or "
                "fp32, or train a head (without network)"
            )
        check_preprocessing(backbone.recipe.preprocessing)
        if table is not None:  # made by an older rule from bytes to pixels, perhaps
            backbone = replace(backbone, recipe=backbone.recipe.under_rule_of(table.recipe_file.recipe))
        self._cut = choose_cut(config.network.freeze, backbone, table)
        self.examples, items, trust_listing = _examples(config, table)
        self._file = encode_examples(self.examples, items)
        first_file = encode_examples(_as_first_encoded(self.examples), items)
        of_table = "" if table is None else table.recipe_file.recipe_id
        rules = IMAGE_RULES if table is None else (backbone.recipe.image_rule,)
        recipes = [backbone.recipe.under_rule(rule) for rule in rules]
        by_fingerprint = {fingerprint(config, one.recipe_id, self._cut, of_table, first_file): one for one in recipes}
        print_, self.recipe = _begun(config, by_fingerprint)
        self.identity = Identity(
            config=config_identity(config, None if table is None else table.uri),
            recipe_id=self.recipe.recipe_id,
            examples=hashlib.sha256(self._file).hexdigest(),
            fingerprint=print_,
        )
        self._job = Job(
            config=config,
            identity=self.identity,
            recipe=self.recipe,
            cut=self._cut,
            table_version=None if table is None else table.version,
            trust_listing=trust_listing,
        )

    @property
    def has_leftovers(self) -> bool:
        """Whether checkpoints are there, of a run that ended or is under way."""
        return folder_exists(checkpoints_of(self.config))

    def prepare(self) -> dict[str, Any]:
        """Do nothing more: what the identity depends on has been read already."""
        return {"table_version": self._job.table_version, "frozen_up_to": self._cut}

    def run(self, lease: Lease) -> ModelCard:
        """Train here or on Ray; the first of the processes writes the model."""
        if self.config.rebuild and model_exists(self.config.out):
            _forget_done(self._job.folder)
        write_examples(self._job.folder, self._file)
        if self.config.local:
            work(self._job, Alone())
        else:
            from tlray.training.network.on_ray import work_on_ray  # ray is slow to import, and --local does without it

            work_on_ray(self._job)
        lease.check()
        card = read_card(self.config.out)
        self._log(card)
        return card

    def clear(self) -> None:
        """Delete the checkpoints: the model is there."""
        delete_folder(checkpoints_of(self.config))

    def _log(self, card: ModelCard) -> None:
        config = self.config
        parameters = {"backbone": card.recipe.backbone, "frozen_up_to": card.training["frozen_up_to"]}
        with Loggers(config.loggers, folder=Path(config.logs), name=config.out, parameters=parameters) as loggers:
            for number, epoch in enumerate(card.training["history"], 1):
                loggers.log(number, {name: value for name, value in epoch.items() if value is not None})


def _begun(config: TrainConfig, recipes: Mapping[str, Recipe]) -> tuple[str, Recipe]:
    """Find the recipe of a training that is done or under way: it keeps the rule from bytes to pixels that it began with.

    Args:
        config: of the command, with whole URIs.
        recipes: that it may have, by the fingerprint of the training, the newest one first.

    Returns:
        Its fingerprint and recipe; those of the newest rule where nothing is there.
    """
    made = read_card(config.out).training.get("fingerprint") if model_exists(config.out) and not config.rebuild else None
    for print_, recipe in recipes.items():
        if print_ == made or folder_exists(run_folder(config, print_)):
            return print_, recipe
    return next(iter(recipes.items()))


def _check(config: TrainConfig) -> None:
    """Refuse what does not go together."""
    settings = config.network
    assert settings is not None
    if (config.table is None) == (config.source is None):
        raise ConfigError("a network is trained from a source's images or from a table of activations: give one of the two")
    if config.source is not None and config.recipe is None:
        raise ConfigError("to train from images the network is needed: give recipe.backbone")
    if config.table is not None and (settings.augment or settings.start == "scratch"):
        raise ConfigError(
            "augment and start scratch change what the layers before the cut compute, which a table of activations has fixed; "
            "train from a source's images"
        )
    if config.source is not None and (config.where is not None or config.source.columns):
        raise ConfigError(
            "where and source.columns are of tables: give a table to train on, or leave them out and choose by source.include"
        )
    if config.refit or config.grid != GridConfig.model_construct():
        raise ConfigError("refit and grid are for heads on a table's vectors; a network is trained once: leave them out")
    if config.head.kind == "ridge":
        raise ConfigError("head.kind ridge has a closed form for fixed vectors only; a network takes linear or mlp")


def _recipe_config(config: TrainConfig, table: Table | None) -> RecipeConfig:
    """The network that is trained: as the user says it, or that of the table, pooled at its penultimate layer."""
    assert config.network is not None
    if config.recipe is not None:
        scratch = {"weights": f"random:{config.seed}", "weights_sha256": None}
        return config.recipe.model_copy(update=scratch) if config.network.start == "scratch" else config.recipe
    assert table is not None
    recipe = of_images(table.recipe_file.recipe)
    given = recipe.preprocessing.model_dump(exclude={"fill"})
    return RecipeConfig(
        backbone=recipe.backbone,
        weights=whole_weights(recipe.weights),
        weights_sha256=recipe.weights_sha256,
        precision=recipe.precision,
        preprocessing=PreprocessingConfig(**given),
    )


def _examples(config: TrainConfig, table: Table | None) -> tuple[Examples, pa.Table, bool]:
    """Labelled images in order of URI, what is known of each, and whether a listing's etags are to be trusted."""
    columns: dict[str, pa.Array] | None = None
    if table is not None:
        asked, trust_listing = columns_asked(config), False
        items = read_rows(table, asked, config.where).items
        columns = {name: items[name].combine_chunks() for name in asked}
    else:
        assert config.source is not None
        source, items = list_images(
            config.source,
            refusal="whose images cannot be read in any order; train from single files or a manifest, or from a table of "
            "activations",
        )
        trust_listing = source.format == "manifest"
    own = items["uri"].combine_chunks(), items["label"].combine_chunks()
    examples = read_examples(*own, config.part(ExamplesConfig), columns=columns)
    return examples, items.take(pa.array(examples.rows_N)), trust_listing


def _as_first_encoded(examples: Examples) -> Examples:
    """The examples as version 0.1 wrote them: numbers in float32."""
    return replace(examples, targets=examples.targets.astype(np.float32)) if examples.task == "regression" else examples


def _forget_done(folder: str) -> None:
    """Delete what a run to its end has left behind; one that is under way stays, to go on."""
    checkpoints = Checkpoints(folder)
    step = checkpoints.last_step()
    if step >= 0 and checkpoints.read(step)[1].is_done:
        delete_folder(folder)
