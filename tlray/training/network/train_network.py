"""`tlray train` of a network: what is to be trained on what, decided before any work; then Ray, or this process, does it."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from tlray.config import GridConfig, PreprocessingConfig, RecipeConfig, TrainConfig
from tlray.errors import ConfigError, RecipeMismatchError
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.source.source import PAGE_SCHEMA, open_source
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.lease import hold
from tlray.lake.table.table import Table
from tlray.models.backbones import Backbone, resolve_backbone
from tlray.models.weights import WeightsSpec
from tlray.progress import say
from tlray.recipe import Recipe
from tlray.training.examples.examples import Examples, read_examples
from tlray.training.examples.examples_file import encode_shared, write_shared
from tlray.training.examples.labels import labels_uri
from tlray.training.examples.losses import check_class_weights
from tlray.training.head_config import check_head
from tlray.training.model.loggers import Loggers
from tlray.training.model.model import ModelCard, model_exists, read_card
from tlray.training.model.rerun import short_metrics
from tlray.training.network.checkpoints import Checkpoints, delete_folder
from tlray.training.network.processes import Alone
from tlray.training.network.worker import Job, anatomy_of, check_activations, checkpoints_of, suffix_of, work

_DOES_NOT_MATTER: Any = {
    **dict.fromkeys(("out", "memory_bytes", "loggers", "logs", "rebuild", "wait", "lease_seconds", "dry_run", "local"), True),
    "network": {"workers", "max_workers", "max_failures", "checkpoint_every"},
}
"""Keys that a run may change when it goes on."""


def train_network(config: TrainConfig) -> dict[str, Any]:
    """Train a network and save it as a model; the same command goes on with a run that was ended.

    Args:
        config: of the command, with `network`.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong; nothing was started.
        TooManyFailuresError: more images cannot be read than allowed.
        TableLockedError: another run trains a model there.
        StorageError: workers or a store failed for good; the same command goes on from the last checkpoint.
    """
    assert config.network is not None
    _check(config)
    config = _in_full(config)
    table = None if config.table is None else Table.open(to_uri(config.table), config.table_version)
    backbone = resolve_backbone(_recipe_config(config, table), local_copy)
    check_preprocessing(backbone.recipe.preprocessing)
    cut = _choose_cut(config, backbone, table)
    examples, items, trust_listing = _examples(config, table)
    shared = encode_shared(examples, items)
    job = Job(
        config=config,
        recipe=backbone.recipe,
        cut=cut,
        table_version=None if table is None else table.version,
        trust_listing=trust_listing,
        fingerprint=_fingerprint(config, backbone.recipe, cut, table, shared),
    )
    out = to_uri(config.out)
    if config.dry_run:
        return {"model": out, "dry_run": True, "frozen_up_to": cut, "counts": dict(examples.counts)}
    _is_made(job, out)  # refuses before anything is written
    with hold(out, "train", wait=config.wait, seconds=config.lease_seconds) as lease:
        is_made = _is_made(job, out)  # another run may have ended meanwhile
        if is_made:
            say(f"nothing to do: {out} holds the model of this very training")
        else:
            _train(job, shared, out)
            lease.check()
        card = read_card(out)
        delete_folder(checkpoints_of(config))
    return _result(out, card, "unchanged" if is_made else "trained")


def _is_made(job: Job, out: str) -> bool:
    """Whether the model is there already.

    Raises:
        ConfigError: another one is, and is not to be replaced.
    """
    if job.config.rebuild or not model_exists(out):
        return False
    if read_card(out).training.get("fingerprint") != job.fingerprint:
        raise ConfigError(f"{out} holds another model; give --rebuild to replace it, or another --out")
    return True


def _train(job: Job, shared: bytes, out: str) -> None:
    if job.config.rebuild and model_exists(out):
        _forget_done(job.folder)
    write_shared(job.folder, shared)
    if job.config.local:
        work(job, Alone())
    else:
        from tlray.training.network.on_ray import work_on_ray  # ray is slow to import, and --local does without it

        work_on_ray(job)
    _log(job.config, out, read_card(out))


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
    if config.refit or config.grid != GridConfig.model_construct():
        raise ConfigError("refit and grid are for heads on a table's vectors; a network is trained once: leave them out")
    if config.head.kind == "ridge":
        raise ConfigError("head.kind ridge has a closed form for fixed vectors only; a network takes linear or mlp")
    check_head(config)
    check_class_weights(config)


def _in_full(config: TrainConfig) -> TrainConfig:
    """With whole addresses for the places that it names.

    Other processes work in other folders, and the fingerprint of a relative address would be the same for two places.
    """
    update: dict[str, Any] = {"out": to_uri(config.out), "labels": labels_uri(config) or config.labels}
    if config.table is not None:
        update["table"] = to_uri(config.table)
    if config.source is not None:
        listing = config.source.listing and to_uri(config.source.listing)
        update["source"] = config.source.model_copy(update={"uri": to_uri(config.source.uri), "listing": listing})
    if config.recipe is not None:
        update["recipe"] = config.recipe.model_copy(update={"weights": _weights_in_full(config.recipe.weights)})
    return config.model_copy(update=update)


def _weights_in_full(weights: str) -> str:
    spec = WeightsSpec.parse(weights)
    return to_uri(spec.location) + ("#order" if spec.by_order else "") if spec.kind == "file" else weights


def _recipe_config(config: TrainConfig, table: Table | None) -> RecipeConfig:
    """The network that is trained: as the user says it, or that of the table, pooled at its penultimate layer."""
    assert config.network is not None
    if config.recipe is not None:
        scratch = {"weights": f"random:{config.seed}", "weights_sha256": None}
        return config.recipe.model_copy(update=scratch) if config.network.start == "scratch" else config.recipe
    assert table is not None
    recipe = table.recipe_file.recipe
    given = recipe.preprocessing.model_dump(exclude={"fill"})
    return RecipeConfig(
        backbone=recipe.backbone,
        weights=_weights_in_full(recipe.weights),
        weights_sha256=recipe.weights_sha256,
        precision=recipe.precision,
        preprocessing=PreprocessingConfig(**given),
    )


def _choose_cut(config: TrainConfig, backbone: Backbone, table: Table | None) -> str | None:
    """The cut, checked: the network has it, and the table has its activations."""
    assert config.network is not None
    freeze = config.network.freeze
    anatomy = anatomy_of(backbone)
    if table is None:
        return anatomy.choose_cut(freeze or "none")
    recipe = table.recipe_file.recipe
    _check_recipes(table.uri, recipe, backbone.recipe)
    if freeze is None and len(recipe.taps) > 1:
        raise ConfigError(f"{table.uri} has the layers {', '.join(recipe.taps)}; name one of them as network.freeze")
    cut = recipe.taps[0] if freeze is None else anatomy.choose_cut(freeze)
    if cut not in recipe.taps:
        raise RecipeMismatchError(
            f"{table.uri} has the activations of {', '.join(recipe.taps)}, but network.freeze {freeze} means {cut}; "
            "extract a table with that layer in recipe.taps"
        )
    suffix_of(backbone, cut)
    check_activations(backbone, table.recipe_file, cut)
    return cut


def _check_recipes(uri: str, theirs: Recipe, ours: Recipe) -> None:
    """Refuse a table that does not hold what this network computes up to a cut."""
    both = {"backbone", "weights_sha256", "preprocessing", "image_rule"}
    differences = [line for line in ours.differences(theirs) if line.partition(":")[0].partition(".")[0] in both]
    if theirs.pool != "none":
        differences.append(f"pool: 'none', {theirs.pool!r}")
    if theirs.normalize:
        differences.append("normalize: False, True")
    if differences:
        raise RecipeMismatchError(
            f"{uri} does not hold this network's activations (field: needed, the table's; {'; '.join(differences)}); "
            "extract one with --recipe.pool none and the same backbone, weights and preprocessing"
        )


def _examples(config: TrainConfig, table: Table | None) -> tuple[Examples, pa.Table, bool]:
    """Labelled images in the order of their URIs, what is known of each, and whether a listing's etags are to be trusted."""
    if table is not None:
        rows, trust_listing = table.read(["uri", "etag", "label"]), False
    else:
        assert config.source is not None
        source = open_source(config.source)
        if source.kind != "images":
            raise ConfigError(
                f"{source.uri} is of format {source.format}, whose images cannot be read in any order; "
                "train from single files or a manifest, or from a table of activations"
            )
        rows, trust_listing = pa.concat_tables([PAGE_SCHEMA.empty_table(), *source.pages()]), source.format == "manifest"
        rows = rows.group_by("uri", use_threads=False).aggregate([(name, "first") for name in rows.column_names[1:]])
        rows = rows.rename_columns(PAGE_SCHEMA.names)
    rows = rows.sort_by("uri").combine_chunks()
    examples = read_examples(rows["uri"].combine_chunks(), rows["label"].combine_chunks(), config)
    return examples, rows.take(pa.array(examples.rows_N)), trust_listing


def _fingerprint(config: TrainConfig, recipe: Recipe, cut: str | None, table: Table | None, shared: bytes) -> str:
    document = config.model_dump_json(exclude=_DOES_NOT_MATTER)
    theirs = "" if table is None else table.recipe_file.recipe_id
    return hashlib.sha256(f"{document}\n{recipe.recipe_id}\n{cut}\n{theirs}\n".encode() + shared).hexdigest()


def _forget_done(folder: str) -> None:
    """Delete what a run to its end has left behind; one that is under way stays, to go on."""
    checkpoints = Checkpoints(folder)
    step = checkpoints.last_step()
    if step >= 0 and checkpoints.read(step)[1].is_done:
        delete_folder(folder)


def _log(config: TrainConfig, out: str, card: ModelCard) -> None:
    parameters = {"backbone": card.recipe.backbone, "frozen_up_to": card.training["frozen_up_to"]}
    with Loggers(config.loggers, folder=Path(config.logs), name=out, parameters=parameters) as loggers:
        for number, epoch in enumerate(card.training["history"], 1):
            loggers.log(number, {name: value for name, value in epoch.items() if value is not None})


def _result(out: str, card: ModelCard, action: str) -> dict[str, Any]:
    told = ("frozen_up_to", "epochs", "best_epoch", "unreadable_images", "counts")
    return {"model": out, "action": action, "recipe_id": card.recipe_id, "task": card.task, "outputs": len(card.classes)} | {
        **{key: card.training[key] for key in told},
        "metrics": short_metrics(card),
    }
