"""A network's training on a Ray cluster: Ray Train starts the processes, and starts them again when some are lost.

What is kept is our own (`tlray.training.network.saved.checkpoints`), in one format whether Ray is there or not; a run that
goes on finds it by
its fingerprint, whatever the number of processes is then. Epochs are not reported to Ray Train, which
shows them nowhere and takes a report every two seconds only: no epoch would be shorter.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tlray.errors import ConfigError, TooManyFailuresError
from tlray.lake.storage.open import arrow_filesystem
from tlray.lake.storage.uri import join, to_path
from tlray.progress import Lines
from tlray.ray_cluster.errors import own_error
from tlray.ray_cluster.session import joined

if TYPE_CHECKING:
    from tlray.training.network.worker import Job


class RayWorld:
    """The processes of a Ray Train run; made within one."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.local_size = context.get_local_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def wrap(self, network: nn.Module) -> nn.Module:
        """DDP: gloo on CPUs, NCCL on GPUs."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes, on their devices as NCCL needs it."""
        if self.size == 1:
            return tensor
        moved = tensor.to(self.device)
        torch.distributed.all_reduce(moved)
        return tensor.copy_(moved)

    def gather_text(self, text: str) -> list[str]:
        """Gather the texts of all processes through Ray's process group."""
        texts = [text] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(texts, text)
        return texts


def work_on_ray(job: "Job") -> None:
    """Train a network on Ray and save the model.

    Raises:
        ConfigError: no cluster, or the input turned out wrong.
        TooManyFailuresError: more images cannot be read than allowed.
        TlrayError: workers failed more often than allowed; it is what the first of them said.
    """
    settings = job.network
    with joined():
        use_gpu = ray.cluster_resources().get("GPU", 0) >= 1  # type: ignore[no-untyped-call]
        many = settings.workers if settings.max_workers is None else (settings.workers, settings.max_workers)
        path, filesystem = _storage(join(job.folder, "ray"))
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={"job": job.model_dump_json(), "log_level": logging.getLogger("tlray").getEffectiveLevel()},
            scaling_config=ScalingConfig(num_workers=many, use_gpu=use_gpu),  # type: ignore[arg-type]
            run_config=RunConfig(
                name=job.folder.rpartition("/")[2],
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=settings.max_failures),
                callbacks=[_EndAtOnce()],  # type: ignore[list-item]  # Ray types its older RunConfig
            ),
        )
        try:
            with own_interrupts():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise own_error(error) from error


class _EndAtOnce(UserCallback):
    """Ends a run at an error of any worker that trying again would not mend.

    Ray Train looks at its workers every two seconds. What one of them raises ends them all, though they wait for it in a
    collective; without this it would also be tried again.
    """

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """What Ray Train calls; an error raised here ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, (ConfigError, TooManyFailuresError)):
                raise error


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Have Ctrl-C be what it was before: Ray Train's handler outlives the run, and ends in an exit that says all went well.

    Raises:
        KeyboardInterrupt: Ray Train ended so.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler can be set there, by Ray neither
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def _work(settings: dict[str, Any]) -> None:
    """Train in one process of Ray Train."""
    from tlray.training.network.worker import Job, work  # Ray Train's controller reads this module too, and needs no networks

    ours = logging.getLogger("tlray")
    ours.setLevel(settings["log_level"])
    ours.addHandler(Lines())
    ours.propagate = False
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # Ray Train shows all from INFO on
    work(Job.model_validate_json(settings["job"]), RayWorld())


def _storage(uri: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Where Ray Train keeps its own notes, as it wants it said."""
    if uri.startswith("file://"):
        path = to_path(uri)
        Path(path).mkdir(parents=True, exist_ok=True)
        return str(path), None
    return uri.removeprefix("s3://"), arrow_filesystem(uri)
