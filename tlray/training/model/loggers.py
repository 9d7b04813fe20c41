"""Where the numbers of a training run go besides the log: one protocol, TensorBoard and MLflow behind it."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from tlray.errors import ConfigError, first_line

LoggerKind = Literal["tensorboard", "mlflow"]
EXPERIMENT = "tlray"


class Logger(Protocol):
    """The one callback of a training run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step, by their names.

        Args:
            step: the epoch or iteration that they belong to.
            metrics: such as `validation/accuracy`.
        """
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


class TensorBoardLogger:
    """Writes the numbers of a training as event files for TensorBoard.

    Args:
        folder: where they go.

    Raises:
        ConfigError: the package tensorboardX is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ConfigError("loggers: tensorboard needs the package tensorboardX: pip install tensorboardX") from error
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step, by their names."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


class MlflowLogger:
    """A run of MLflow, on the server that its own settings name.

    Args:
        name: of the run.
        parameters: of the run.

    Raises:
        ConfigError: the package mlflow is missing, or its server does not answer.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ConfigError("loggers: mlflow needs the package mlflow: pip install mlflow-skinny") from error
        try:
            self._client = mlflow.tracking.MlflowClient()
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            identifier = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
            self._run_id = self._client.create_run(identifier, run_name=name).info.run_id
            for key, value in parameters.items():
                self._client.log_param(self._run_id, key, value)
        except mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"loggers: mlflow does not answer: {first_line(error)}; check MLflow's own settings") from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step, by their names."""
        for name, value in metrics.items():
            self._client.log_metric(self._run_id, name.replace("@", "_"), value, step=step)

    def close(self) -> None:
        """Write out what is held back."""
        self._client.set_terminated(self._run_id)


class Loggers:
    """Passes the numbers of a run to all its loggers, and closes these at its end.

    Args:
        kinds: which.
        folder: of TensorBoard's files.
        name: of the run.
        parameters: of the run.

    Raises:
        ConfigError: a package is missing.
    """

    def __init__(self, kinds: Iterable[LoggerKind], *, folder: Path, name: str, parameters: Mapping[str, Any]) -> None:
        self._loggers: list[Logger] = []
        for kind in kinds:
            self._loggers.append(TensorBoardLogger(folder) if kind == "tensorboard" else MlflowLogger(name, parameters))

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step, by their names."""
        for logger in self._loggers:
            logger.log(step, metrics)

    def close(self) -> None:
        """Close all loggers, even where closing one of them fails."""
        with ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close)
