"""Networks of frameworks that tlray does not run: how they become files that it does."""

from tlray.models.weights.fetched import find_file
from tlray.models.weights.spec import FetchFile

_TF2ONNX = "python -m tf2onnx.convert"
_THEN = "(pip install tf2onnx; TensorFlow too), then give --backbone onnx:model.onnx"


def advice(location: str, fetch: FetchFile | None) -> str | None:
    """What to do with a network that a path names, by its name or by what the folder holds.

    Args:
        location: URI or path, as a user wrote it.
        fetch: looks whether it is a folder with a SavedModel; None goes by the name alone.

    Returns:
        What it is and the command that makes an ONNX file of it; None where it is nothing of this kind.
    """
    folder, _, name = location.rstrip("/").rpartition("/")
    lower = name.lower()
    if lower == "saved_model.pb":
        return _saved_model(folder or ".")
    if lower.endswith(".pb"):
        return (
            f"it is a graph of TensorFlow; make an ONNX file of it: {_TF2ONNX} --graphdef {location} "
            f"--inputs <input>:0 --outputs <output>:0 --output model.onnx {_THEN}"
        )
    if lower.endswith(".tflite"):
        return (
            f"it is a model of TensorFlow Lite; make an ONNX file of it: {_TF2ONNX} --tflite {location} "
            f"--output model.onnx {_THEN}"
        )
    if lower.endswith((".dnn", ".cntk")):
        return (
            "it is a model of CNTK; make an ONNX file of it, in Python with CNTK: "
            f"cntk.Function.load('{location}').save('model.onnx', format=cntk.ModelFormat.ONNX), "
            "then give --backbone onnx:model.onnx"
        )
    if fetch is not None and "." not in name and find_file(f"{location.rstrip('/')}/saved_model.pb", fetch):
        return _saved_model(location.rstrip("/"))
    return None


def _saved_model(folder: str) -> str:
    return (
        f"it is a SavedModel of TensorFlow; make an ONNX file of it: {_TF2ONNX} --saved-model {folder} "
        f"--output model.onnx {_THEN}"
    )
