"""The engines beside torch: what they need, what they may compute, and how they are imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tlray.config.commands.extraction import Engine
from tlray.models.encoder.engines.converted import NotConvertedError, Runtime
from tlray.recipe import Compute


@dataclass(frozen=True)
class Other:
    """An engine beside torch, and what it needs.

    Attributes:
        extra: that installs it.
        packages: that it needs, by the names of their modules.
        computes: what it may compute; whether this processor does, it says itself.
        batch_sizes: images in a pass that are tried beside the usual number.
    """

    extra: str
    packages: tuple[str, ...]
    computes: tuple[Compute, ...]
    batch_sizes: tuple[int, ...] = ()

    @property
    def versions(self) -> tuple[str, ...] | None:
        """Of its packages; None where one is missing."""
        try:
            return tuple(map(_version, self.packages))
        except PackageNotFoundError:
            return None


OTHERS: Mapping[Engine, Other] = {
    "openvino": Other("openvino", ("openvino",), ("fp32", "bf16"), (2,)),
    "onnxruntime": Other("onnx", ("onnxruntime", "onnx", "onnxscript"), ("fp32",), (2,)),
}


def _version(package: str) -> str:
    """Of a package, under the name that it has for GPUs too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(f"{package}-gpu")


def identity_of(engine: Engine) -> list[object]:
    """What files of an engine depend on."""
    return [engine, OTHERS[engine].versions]


def runtime_of(engine: Engine) -> Runtime:
    """The engine of a name, which is imported now.

    Raises:
        NotConvertedError: it cannot be imported.
    """
    try:
        # Extras, and slow to import: not before they are to be used.
        if engine == "openvino":
            from tlray.models.encoder.engines.openvino.model import OpenVino

            return OpenVino()
        from tlray.models.encoder.engines.onnxruntime.runtime import OnnxRuntime

        return OnnxRuntime()
    except ImportError as error:
        raise NotConvertedError(f"it cannot be imported: {error}") from error
