"""The training loop: epochs of steps that may end at any moment and go on from the last checkpoint.

Everything random is drawn from the seed, the epoch and the step, or the example: a run that goes on does what it would have
done. The order of an epoch is one permutation of all training rows; each batch of it is shared among the processes, so that
their number does not change what a step learns, but for dropout. Images that cannot be read are left out of their batches, so
that nothing is learned from them, by weights or by batch norms; a batch of which nothing is left is no step.

Shape legend: B rows of a batch, N rows of a split, K outputs, X 1 or K.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tlray.config import FitConfig, NetworkConfig
from tlray.errors import ConfigError, TooManyFailuresError, first_line
from tlray.models.process.device import autocast, precision, settle_compute
from tlray.progress import say
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.losses import row_losses, row_weights
from tlray.training.network.inputs.inputs import Loaded, Rows, read_ahead
from tlray.training.network.learner.batch_norm import shared_batch_norms
from tlray.training.network.learner.schedule import blocks_in_training, parameter_groups, rate_factor
from tlray.training.network.learner.transfer_network import TransferNetwork, share_statistics
from tlray.training.network.learner.weight_average import Average
from tlray.training.network.processes import World
from tlray.training.network.saved.checkpoints import Checkpoints, Epoch, Progress
from tlray.training.network.saved.state import parts_of, restore

STANDARDISED_ROWS = 1024
"""Training rows by which the head's mean and scale are set."""


class Training:
    """Trains a network; all processes of a world make one each.

    Args:
        network: on the world's device.
        examples: all of them, the same in all processes.
        rows: their inputs.
        fit: how long, and in which steps.
        settings: of the network.
        world: of processes.
        checkpoints: of this run.

    Attributes:
        progress: where it is.
    """

    def __init__(
        self,
        network: TransferNetwork,
        examples: Examples,
        rows: Rows,
        fit: FitConfig,
        settings: NetworkConfig,
        world: World,
        checkpoints: Checkpoints,
    ) -> None:
        self.progress = Progress()
        self._network, self._examples, self._rows, self._fit = network, examples, rows, fit
        self._settings, self._world, self._checkpoints = settings, world, checkpoints
        self._compute = settle_compute(world.device, settings.precision)
        self._train = examples.positions(Split.TRAIN)
        self._validation = examples.positions(Split.VALIDATION)
        self._targets = torch.from_numpy(examples.learned_targets)
        weights = row_weights(examples.targets, self._train, examples.task, len(examples.classes), fit.class_weights)
        self._weights_NX = weights.reshape(len(examples), -1)
        groups = parameter_groups(network.head, network.backbone, network.anatomy.blocks, network.frozen.trained, settings)
        self._optimizer = torch.optim.AdamW(groups)
        self._average = Average(network, settings.ema)
        self._best: dict[str, Tensor] = {}
        self._steps = math.ceil(len(self._train) / fit.batch_size)
        self._threads = ThreadPoolExecutor(1, "rows")
        self._runner: nn.Module | None = None
        self._released = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads that read ahead."""
        self._threads.shutdown(cancel_futures=True)
        self._rows.close()

    def run(self, goes_on: Callable[[], bool] = lambda: True) -> Progress:
        """Train to the end, or go on with it; leaves the best epoch's weights in the network.

        Args:
            goes_on: asked before each epoch, in all processes alike; False ends the training there.
        """
        device = self._world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), precision(device, "fp32"):
            if not self._resume() and not self._network.frozen.trained:
                self._standardise()
            while not self.progress.is_done and goes_on():
                self._run_epoch()
            if self._best:
                self._network.load_learned(self._best)
            elif self._average.is_on:
                self._network.load_learned(self._average.tensors)
            share_statistics(self._network, self._world)
            if self._examples.task == "regression":  # no checkpoint has this, so that a run that goes on does it once as well
                self._network.scale_outputs(*map(torch.from_numpy, self._examples.standard))
        return self.progress

    def scores(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the scores of some examples by the network as it is; called in all processes.

        Args:
            positions: of the examples, ascending; N.

        Returns:
            scores_NK, float32, and which of the examples could be read; bool, N.
        """
        found_NK = torch.zeros(len(positions), len(self._examples.classes) + 1)
        self._network.eval()
        with torch.no_grad():
            for positions_B, inputs in self._load(self._cut(positions[self._world.rank :: self._world.size]), epoch=None):
                if len(positions_B):
                    with autocast(self._world.device, self._compute):
                        scores_BK = self._network(inputs)
                    is_read_B1 = scores_BK.new_ones(len(positions_B), 1)
                    found_NK[np.searchsorted(positions, positions_B)] = torch.cat([scores_BK, is_read_B1], dim=1).cpu()
        found = self._world.sum(found_NK).numpy()
        return found[:, :-1], found[:, -1] > 0

    def _standardise(self) -> None:
        """Set the head's mean and scale, where features stay as they are; those that are trained move away from any mean."""
        positions = self._order(0)[:STANDARDISED_ROWS]
        self._network.eval()
        with torch.no_grad():
            loaded = self._load(self._cut(positions), epoch=None)
            features = [self._network.features(inputs) for positions_B, inputs in loaded if len(positions_B)]
        if features:
            self._network.standardise(torch.cat(features))

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._fit.seed, epoch)).permutation(self._train)

    def _cut(self, numbers: np.ndarray) -> list[np.ndarray]:
        return [numbers[start : start + self._fit.batch_size] for start in range(0, len(numbers), self._fit.batch_size)]

    def _run_epoch(self) -> None:
        began, progress, network = time.perf_counter(), self.progress, self._network
        runner = self._wrapped(blocks_in_training(progress.epoch, len(network.anatomy.blocks), self._settings.unfreeze))
        runner.train()
        batches = np.array_split(self._order(progress.epoch), self._steps)[progress.step :]
        shares = [batch[self._world.rank :: self._world.size] for batch in batches]
        for positions_B, inputs in self._load(shares, epoch=progress.epoch):
            self._step(runner, positions_B, inputs)
            if progress.step % self._settings.checkpoint_every == 0 and progress.step < self._steps:
                self._save()
        self._end_epoch(began)

    def _wrapped(self, blocks: int) -> nn.Module:
        """The network with its last blocks in training, wrapped anew only where their number changes."""
        if self._runner is None or self._released != blocks:
            self._runner = None  # what wrapped it before has hooks on the parameters, which end with it
            self._network.release(blocks)
            self._runner, self._released = self._world.wrap(self._network), blocks
        return self._runner

    def _step(self, runner: nn.Module, positions_B: np.ndarray, inputs: Tensor) -> None:
        """Learn from a batch, of which this process has some rows or none; where nobody has any, nothing is learned."""
        progress, world = self.progress, self._world
        done = progress.epoch * self._steps + progress.step
        weights_BX = self._weights_NX[positions_B].to(world.device)
        own = torch.tensor([float(len(positions_B)), float(weights_BX.mean(dim=1).sum())], dtype=torch.float64)
        rows, weight = world.sum(own.clone()).tolist()
        progress.step, progress.rows = progress.step + 1, progress.rows + int(rows)
        if not rows:
            return
        torch.manual_seed(hash((self._fit.seed, done, world.rank)) % 2**63)
        scores_BK = self._scores_in_training(runner, inputs, int(rows))
        targets = self._targets[positions_B].to(world.device)
        losses_B = row_losses(scores_BK[: len(targets)].float(), targets, self._examples.task, weights_BX)
        total = losses_B.sum() if len(positions_B) else 0 * scores_BK.sum()  # what stands in has gradients too, of 0
        # Gradients are averaged over the processes; the loss is the mean over the whole batch.
        (total * (world.size / weight)).backward()
        if self._settings.clip:
            nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.clip)
        factor = rate_factor(done, self._fit.epochs * self._steps, self._settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average.update(done)
        progress.loss += float(total.detach())
        progress.weight += float(own[1])

    def _scores_in_training(self, runner: nn.Module, inputs: Tensor, rows: int) -> Tensor:
        """Run the network on this process's rows; without any, on one that stands in, as the processes wait for each other.

        Raises:
            ConfigError: a single row of one pixel, which batch norms cannot normalise.
        """
        counts = len(inputs) > 0
        if not counts:
            inputs = inputs.new_zeros(1, *inputs.shape[1:])
        try:
            with autocast(self._world.device, self._compute), shared_batch_norms(self._world, counts=counts):
                scores_BK: Tensor = runner(inputs)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1"):  # what torch's norms say
                raise
            raise ConfigError(
                f"a step has {rows} image ({len(self._train)} to train on in steps of batch_size {self._fit.batch_size}), and "
                f"a norm of the network needs more of them: {first_line(error)}; give another batch_size, or freeze the norms"
            ) from error
        return scores_BK

    def _end_epoch(self, began: float) -> None:
        progress, network = self.progress, self._network
        loss, weight = self._sums()
        self._check(loss)
        with self._average.applied():
            share_statistics(self._network, self._world)
            epoch = self._measure(loss / max(weight, 1e-12), began)
            best = progress.epochs[progress.best_epoch].validation_loss if progress.best_epoch >= 0 else None
            if epoch.validation_loss is not None and (best is None or epoch.validation_loss < best):
                progress.best_epoch = progress.epoch
                self._best = {name: tensor.clone() for name, tensor in network.learned().items()}
        progress.epochs.append(epoch)
        progress.epoch, progress.step, progress.loss, progress.weight = progress.epoch + 1, 0, 0.0, 0.0
        is_stale = progress.best_epoch >= 0 and progress.epoch - 1 - progress.best_epoch >= self._fit.patience
        progress.is_done = progress.epoch >= self._fit.epochs or is_stale
        self._save()
        if self._world.rank == 0:
            metrics = {name: value for name, value in epoch.model_dump().items() if value is not None}
            say(f"epoch {progress.epoch} of {self._fit.epochs}: {', '.join(f'{k} {v:.4g}' for k, v in metrics.items())}")

    def _measure(self, train_loss: float, began: float) -> Epoch:
        seconds = time.perf_counter() - began
        scores_NK, is_read_N = self.scores(self._validation)
        if not is_read_N.any():
            return Epoch(train_loss=train_loss, validation_loss=None, accuracy=None, seconds=seconds)
        scores, targets = torch.from_numpy(scores_NK[is_read_N]), self._targets[self._validation[is_read_N]]
        loss = float(row_losses(scores, targets, self._examples.task).mean())
        accuracy = float((scores.argmax(dim=1) == targets).float().mean()) if self._examples.task == "single" else None
        return Epoch(train_loss=train_loss, validation_loss=loss, accuracy=accuracy, seconds=seconds)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ConfigError(
                f"the training loss is {loss} in epoch {self.progress.epoch + 1}; give a lower network.learning_rate, or clip"
            )
        self.check_failed()

    def check_failed(self) -> int:
        """Images that cannot be read, so far.

        Raises:
            TooManyFailuresError: more than allowed.
        """
        failed = self.count_failed()
        if failed > self._settings.max_failed_fraction * len(self._examples):
            raise TooManyFailuresError(
                f"{failed} of {len(self._examples)} images cannot be read, more than network.max_failed_fraction "
                f"{self._settings.max_failed_fraction} ({'; '.join(self._rows.notes[:3])}); mend or exclude them"
            )
        return failed

    def count_failed(self) -> int:
        """Images that a process found it could not read."""
        failed_N = self._world.sum(torch.from_numpy(self._rows.failed_N.astype(np.float32)))
        return int((failed_N > 0).sum())

    def _load(self, shares: Iterable[np.ndarray], epoch: int | None) -> Iterator[Loaded]:
        return read_ahead(self._rows, shares, epoch, self._threads, self._world.device)

    def _sums(self) -> list[float]:
        """Loss and weight of the epoch so far, of all processes."""
        own = torch.tensor([self.progress.loss, self.progress.weight], dtype=torch.float64)
        sums: list[float] = self._world.sum(own).tolist()
        return sums

    def _save(self) -> None:
        loss, weight = self._sums()
        if self._world.rank != 0:
            return
        progress = self.progress.model_copy(update={"loss": loss, "weight": weight})
        parts = parts_of(self._network, self._optimizer, self._average.tensors, self._best)
        self._checkpoints.save(progress.epoch * self._steps + progress.step, parts, progress)

    def _resume(self) -> bool:
        """Go on from the last checkpoint; False where there is none."""
        own = self._checkpoints.last_step() if self._world.rank == 0 else 0  # one decides: another may have come meanwhile
        step = int(self._world.sum(torch.tensor([own])))
        if step < 0:
            return False
        parts, self.progress = self._checkpoints.read(step)
        self._average.tensors, self._best = restore(parts, self._network, self._optimizer, self._world.device)
        if self._world.rank == 0:
            say(f"going on after epoch {self.progress.epoch}, step {self.progress.step} of {self._steps}")
        else:
            self.progress.loss = self.progress.weight = 0.0
        return True
