"""Packages that only some commands need, and that tlray is installed without."""

from importlib import import_module

from tlray.errors import ConfigError


def require(extra: str, *modules: str, what: str) -> None:
    """Import what an extra installs; called before any work, and before anything slow is imported.

    Args:
        extra: its name in pyproject.toml.
        modules: that are needed; the packages bear their names, with `-` for `_`.
        what: needs them, as the beginning of a sentence.

    Raises:
        ConfigError: some are missing; the message says what to install.
    """
    missing = []
    for module in modules:
        try:
            import_module(module)
        except ImportError:
            missing.append(module.replace("_", "-"))
    if missing:
        raise ConfigError(
            f"{what} needs packages that are not installed: pip install {' '.join(missing)}; or install tlray with its extra "
            f"[{extra}]"
        )


def require_int8() -> None:
    """Import what networks at int8 are computed with; see `require`."""
    require("onnx", "onnxruntime", "onnx", "onnxscript", what="recipe.precision.compute int8")
