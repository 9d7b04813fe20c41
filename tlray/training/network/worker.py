"""What each process of a network's training does: make the network and its rows, train, measure, save.

Shape legend: N examples, K outputs, D length of the tap's vector.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tlray.config import TrainConfig
from tlray.errors import ConfigError, TlrayError, first_line
from tlray.lake.source.read_images import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import join, to_uri
from tlray.lake.table.table import Table
from tlray.models.backbones import Backbone, load_backbone, to_network_input
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.precision import precision
from tlray.models.freezing import Anatomy, examine
from tlray.models.heads import Head, HeadSpec
from tlray.models.suffix import Suffix, split_suffix
from tlray.models.taps import Pooling, TapRunner
from tlray.models.weights import hash_weights
from tlray.recipe import GOLDEN_IMAGE_COUNT, Recipe, RecipeFile, check_golden, golden_images
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.examples_file import read_shared
from tlray.training.examples.metrics import Evaluation, evaluate
from tlray.training.head_config import hidden_of
from tlray.training.model.model import NETWORK_NAME, RECIPE_NAME, ModelCard, now, package_versions, save_model
from tlray.training.model.plots import draw_confusion, draw_curves
from tlray.training.network.checkpoints import Checkpoints, Progress
from tlray.training.network.inputs import ActivationRows, ImageRows, Rows
from tlray.training.network.loop import Training
from tlray.training.network.processes import World
from tlray.training.network.transfer_network import TransferNetwork


class Job(BaseModel):
    """All that a process needs to know; crosses to other machines as JSON.

    Attributes:
        config: of the command.
        recipe: of the network before it is trained.
        cut: up to which it is frozen.
        table_version: of the table of activations, where they are trained on.
        trust_listing: see `ReadSpec`.
        fingerprint: of all that the result depends on.
    """

    model_config = ConfigDict(frozen=True)

    config: TrainConfig
    recipe: Recipe
    cut: str | None
    table_version: int | None
    trust_listing: bool
    fingerprint: str

    @property
    def folder(self) -> str:
        """Where the run keeps its examples and checkpoints."""
        return join(checkpoints_of(self.config), self.fingerprint[:16])


def checkpoints_of(config: TrainConfig) -> str:
    """Where all runs towards a model keep what they need to go on."""
    return join(to_uri(config.out), "checkpoints")


def probe_of(recipe: Recipe, images: int) -> Tensor:
    """Golden images as the network takes them, images_BCHW."""
    return to_network_input(torch.from_numpy(golden_images(*recipe.preprocessing.crop)[:images]), recipe.preprocessing)


def anatomy_of(backbone: Backbone) -> Anatomy:
    """Of its only tap.

    Raises:
        ConfigError: it has several.
    """
    if len(backbone.recipe.taps) != 1:
        raise ConfigError(f"recipe.taps has {len(backbone.recipe.taps)} layers; a network is trained on one")
    return examine(backbone.module, backbone.recipe.taps[0], probe_of(backbone.recipe, 1))


def suffix_of(backbone: Backbone, cut: str) -> Suffix:
    """What comes after a cut; see `split_suffix`."""
    recipe = backbone.recipe
    pooling = Pooling.of(backbone.module, recipe.pool, recipe.preprocessing.crop)
    device = next(backbone.module.parameters()).device
    return split_suffix(backbone.module, cut, recipe.taps[0], pooling, probe_of(recipe, 2).to(device))


def check_activations(backbone: Backbone, file: RecipeFile, cut: str) -> None:
    """Hold what this machine computes up to a cut against the golden vectors of a table of activations.

    Raises:
        GoldenMismatchError: the table was made by something that computes other numbers.
    """
    pooling = Pooling.of(backbone.module, "none", backbone.recipe.preprocessing.crop)
    with torch.inference_mode():
        images_BCHW = probe_of(backbone.recipe, GOLDEN_IMAGE_COUNT)
        activations_BD = TapRunner(backbone.module, [cut], pooling)(images_BCHW)[cut].flatten(1).numpy()
    column = file.recipe.columns[cut]
    only = file.model_copy(update={"golden": {column: file.golden[column]}})
    check_golden(only, {column: activations_BD}, where="this machine")


def work(job: Job, world: World) -> None:
    """Train, and save the model; called in all processes of a world."""
    with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
        begun: _Begun | None = None
        failure: TlrayError | None = None
        try:
            begun = _begin(job, world, Path(scratch))
        except TlrayError as error:
            failure = error
        agree(world, failure)
        assert begun is not None
        backbone, examples, network, rows = begun
        with Training(network, examples, rows, job.config, world, Checkpoints(job.folder)) as training:
            progress = training.run()
            with precision(world.device, "fp32"):
                metrics = _measure(training, examples)
            failed = training.check_failed()
    if world.rank == 0:
        _save(job, replace(backbone, module=backbone.module.cpu()), network, examples, progress, metrics, failed)


def agree(world: World, failure: TlrayError | None) -> None:
    """Go on in all processes, or in none: one that is missing would be waited for.

    Args:
        world: all its processes call this.
        failure: why this one cannot go on.

    Raises:
        TlrayError: the failure given, or one that says what another process's is.
    """
    texts = world.gather_text("" if failure is None else first_line(failure))
    if failure is not None:
        raise failure
    if others := [text for text in texts if text]:
        raise TlrayError(f"another worker could not begin: {others[0]}")


_Begun = tuple[Backbone, Examples, TransferNetwork, Rows]


def _begin(job: Job, world: World, scratch: Path) -> _Begun:
    examples, items = read_shared(job.folder)
    backbone = load_backbone(job.recipe, local_copy)
    table = None
    if job.config.table is not None:
        table = Table.open(to_uri(job.config.table), job.table_version)
    network = _network(job, backbone, examples, table, world)
    return backbone, examples, network, _rows(job, examples, items, table, scratch, world.local_size)


def _network(job: Job, backbone: Backbone, examples: Examples, table: Table | None, world: World) -> TransferNetwork:
    head = job.config.head
    assert head.kind != "ridge"
    (features,) = (shape for shape in backbone.shapes.values())
    spec = HeadSpec(
        kind=head.kind,
        inputs=int(torch.Size(features).numel()),
        outputs=len(examples.classes),
        hidden=hidden_of(job.config),
        dropout=head.dropout,
    )
    anatomy = anatomy_of(backbone)
    backbone.module.to(world.device)  # before it is cut: the suffix keeps hold of tensors
    suffix: Suffix | None = None
    shape: tuple[int, ...] = ()
    if table is not None:
        assert job.cut is not None
        suffix = suffix_of(backbone, job.cut)
        shape = table.recipe_file.shapes[table.recipe_file.recipe.columns[job.cut]]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(job.config.seed)
        network = TransferNetwork(backbone, anatomy, job.cut, Head.of(spec), suffix=suffix, shape=shape)
    return network.to(world.device)


def _rows(job: Job, examples: Examples, items: Any, table: Table | None, scratch: Path, sharers: int) -> Rows:
    config, settings = job.config, job.config.network
    assert settings is not None
    if table is not None:
        assert job.cut is not None
        column = table.recipe_file.recipe.columns[job.cut]
        return ActivationRows(table, column, examples.uris, memory_bytes=config.memory_bytes, scratch=scratch, sharers=sharers)
    assert config.source is not None
    spec = ReadSpec(
        kind="images", source=config.source, preprocessing=job.recipe.preprocessing, trust_listing=job.trust_listing
    )
    kinds = ("crop", "flip") if settings.augment is None else settings.augment
    return ImageRows(
        items, spec, kinds=kinds, seed=config.seed, memory_bytes=config.memory_bytes, scratch=scratch, sharers=sharers
    )


def _measure(training: Training, examples: Examples) -> dict[str, Evaluation]:
    metrics = {}
    for split in Split:
        positions = examples.positions(split)
        scores_NK, fine_N = training.scores(positions) if len(positions) else (None, None)
        if scores_NK is not None and fine_N is not None and fine_N.any():
            targets = examples.targets[positions[fine_N]]
            metrics[split.name.lower()] = evaluate(scores_NK[fine_N], targets, examples.task, examples.classes)
    return metrics


def _save(
    job: Job,
    backbone: Backbone,
    network: TransferNetwork,
    examples: Examples,
    progress: Progress,
    metrics: dict[str, Evaluation],
    failed: int,
) -> None:
    config, out = job.config, to_uri(job.config.out)
    assert config.network is not None
    frozen_sha256 = network.frozen_sha256()
    module, recipe = backbone.module.eval(), job.recipe
    if is_trained := bool(network.frozen.trained):
        update = {"weights": join(out, NETWORK_NAME), "weights_sha256": hash_weights(module)}
        recipe = recipe.model_copy(update=update)
    card = ModelCard(
        created=now(),
        task=examples.task,
        classes=examples.classes,
        head=network.head.spec,
        recipe=recipe,
        recipe_id=recipe.recipe_id,
        tap=recipe.taps[0],
        table=None if config.table is None else to_uri(config.table),
        table_version=job.table_version,
        source=None if config.source is None else to_uri(config.source.uri),
        training={
            "strategy": "network",
            "fingerprint": job.fingerprint,
            "start": config.network.start,
            "frozen_up_to": job.cut,
            "frozen_sha256": frozen_sha256,
            "trained_parameters": len(network.frozen.trained),
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch + 1,
            "rows_trained_on": progress.rows,
            "unreadable_images": failed,
            "counts": dict(examples.counts),
            "history": [epoch.model_dump() for epoch in progress.epochs],
        },
        metrics=metrics,
        config=config.model_dump(mode="json"),
        versions=package_versions(),
    )
    golden = make_recipe_file(replace(backbone, recipe=recipe, module=module))
    state = module.state_dict() if is_trained else None
    files = {RECIPE_NAME: golden.to_json()} | _pictures(progress, metrics, examples)
    save_model(out, card, network.head, state, files=files)


def _pictures(progress: Progress, metrics: dict[str, Evaluation], examples: Examples) -> dict[str, bytes]:
    curves = {"train": [epoch.train_loss for epoch in progress.epochs]}
    validation = [epoch.validation_loss for epoch in progress.epochs if epoch.validation_loss is not None]
    pictures = {"curves.png": draw_curves(curves | {"validation": validation} if validation else curves)}
    measured = metrics.get("test") or metrics.get("validation")
    if measured is not None and measured.confusion is not None:
        pictures["confusion.png"] = draw_confusion(measured.confusion, examples.classes)
    return {name: data for name, data in pictures.items() if data is not None}
