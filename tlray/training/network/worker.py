"""What each process of a network's training does: make the network and its rows, train, measure, save.

Shape legend: N examples, K outputs, D length of the tap's vector.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from tlray.config import FitConfig, NetworkConfig, TrainConfig
from tlray.errors import TlrayError, first_line
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import join
from tlray.lake.table.table import Table
from tlray.models.backbones.images import Backbone, load_backbone
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.layers.heads import Head, HeadSpec
from tlray.models.layers.suffix import Suffix
from tlray.models.process.device import precision
from tlray.models.weights.digest import hash_weights
from tlray.recipe import Recipe
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.examples_file import read_written
from tlray.training.examples.metrics import Evaluation, evaluate
from tlray.training.model.model import NETWORK_NAME
from tlray.training.model.publish import Trained, publish
from tlray.training.model.rerun import Identity
from tlray.training.network.inputs.inputs import ActivationRows, ImageRows, Rows
from tlray.training.network.learner.cut import anatomy_of, suffix_of
from tlray.training.network.learner.transfer_network import TransferNetwork
from tlray.training.network.loop import Training
from tlray.training.network.processes import World
from tlray.training.network.saved.checkpoints import Checkpoints, Progress


class Job(BaseModel):
    """All that a process needs to know; crosses to other machines as JSON.

    Attributes:
        config: of the command, with whole URIs.
        identity: of the model.
        recipe: of the network before it is trained.
        cut: up to which it is frozen.
        table_version: of the table of activations, where they are trained on.
        trust_listing: see `ReadSpec`.
    """

    model_config = ConfigDict(frozen=True)

    config: TrainConfig
    identity: Identity
    recipe: Recipe
    cut: str | None
    table_version: int | None
    trust_listing: bool

    @property
    def folder(self) -> str:
        """Where the run keeps its examples and checkpoints."""
        assert self.identity.fingerprint is not None
        return run_folder(self.config, self.identity.fingerprint)

    @property
    def fit(self) -> FitConfig:
        """The config's keys that say how long and in which steps is trained."""
        return self.config.part(FitConfig)

    @property
    def network(self) -> NetworkConfig:
        """The config's section that says how the network is trained."""
        assert self.config.network is not None
        return self.config.network


def checkpoints_of(config: TrainConfig) -> str:
    """Where all runs towards a model keep what they need to go on."""
    return join(config.out, "checkpoints")


def run_folder(config: TrainConfig, fingerprint: str) -> str:
    """Where the run of a fingerprint keeps its examples and checkpoints."""
    return join(checkpoints_of(config), fingerprint[:16])


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
        with Training(network, examples, rows, job.fit, job.network, world, Checkpoints(job.folder)) as training:
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
    examples, items = read_written(job.folder)
    backbone = load_backbone(job.recipe, local_copy)
    table = None if job.config.table is None else Table.open(job.config.table, job.table_version)
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
        hidden=head.widths,
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


def _rows(job: Job, examples: Examples, items: pa.Table, table: Table | None, scratch: Path, sharers: int) -> Rows:
    config = job.config
    if table is not None:
        assert job.cut is not None
        column = table.recipe_file.recipe.columns[job.cut]
        return ActivationRows(table, column, examples.uris, memory_bytes=config.memory_bytes, scratch=scratch, sharers=sharers)
    assert config.source is not None
    spec = ReadSpec(
        kind="images",
        source=config.source,
        preprocessing=job.recipe.preprocessing,
        trust_listing=job.trust_listing,
        image_rule=job.recipe.image_rule,
    )
    kinds = ("crop", "flip") if job.network.augment is None else job.network.augment
    return ImageRows(
        items, spec, kinds=kinds, seed=config.seed, memory_bytes=config.memory_bytes, scratch=scratch, sharers=sharers
    )


def _measure(training: Training, examples: Examples) -> dict[str, Evaluation]:
    metrics = {}
    for split in Split:
        positions = examples.positions(split)
        scores_NK, is_read_N = training.scores(positions)
        if is_read_N.any():
            targets = examples.targets[positions[is_read_N]]
            metrics[split.name.lower()] = evaluate(scores_NK[is_read_N], targets, examples.task, examples.classes)
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
    frozen_sha256 = network.frozen_sha256()
    module, recipe = backbone.module.eval(), job.recipe
    if is_trained := bool(network.frozen.trained):
        update = {"weights": join(job.config.out, NETWORK_NAME), "weights_sha256": hash_weights(module)}
        recipe = recipe.model_copy(update=update)
        backbone = replace(backbone, text_tower=None)  # its texts are in the space of the images before
    curves = {"train": [epoch.train_loss for epoch in progress.epochs]}
    validation = [epoch.validation_loss for epoch in progress.epochs if epoch.validation_loss is not None]
    facts = {
        "start": job.network.start,
        "frozen_up_to": job.cut,
        "frozen_sha256": frozen_sha256,
        "trained_parameters": len(network.frozen.trained),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch + 1,
        "rows_trained_on": progress.rows,
        "unreadable_images": failed,
        "history": [epoch.model_dump() for epoch in progress.epochs],
    }
    trained = Trained(
        strategy="network",
        examples=examples,
        head=network.head,
        recipe_file=make_recipe_file(replace(backbone, recipe=recipe, module=module)),
        tap=recipe.taps[0],
        metrics=metrics,
        curves=curves | {"validation": validation} if validation else curves,
        best_curve=None,
        facts=facts,
        network_state=module.state_dict() if is_trained else None,
        network_files=backbone.files if is_trained else {},
        table_version=job.table_version,
    )
    publish(trained, job.config, job.identity)
