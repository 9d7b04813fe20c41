"""Keras as a library of backbones: its applications, and files of models."""

from collections.abc import Sequence

from tlray.errors import BackboneError
from tlray.models.libraries.keras.applications import APPLICATIONS
from tlray.models.libraries.keras.loading.application import load_application
from tlray.models.libraries.keras.loading.files import is_keras_file
from tlray.models.libraries.keras.loading.model_file import FILE, load_model_file
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.weights.spec import FetchFile


class Keras:
    """The library; Keras itself is imported when a network is loaded."""

    name = "keras"

    def models(self) -> Sequence[str]:
        """The names of Keras' applications that can be loaded."""
        return list(APPLICATIONS)

    def has(self, model: str) -> bool:
        """Whether it is an application, or what may be a file: `load` says what is wrong with one."""
        return model in APPLICATIONS or model == FILE or "/" in model or model.startswith("package:") or is_keras_file(model)

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        """A network with its weights, as torch computes it."""
        if request.model in APPLICATIONS:
            return load_application(request, fetch)
        if not self.has(request.model):
            raise BackboneError(f"there is no backbone 'keras:{request.model}'; expected an application, or a file of a model")
        return load_model_file(request, fetch)


def library() -> Keras:
    """Keras, as a library of backbones."""
    return Keras()
