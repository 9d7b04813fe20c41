"""`tlray.Encoder`: images or texts to vectors in Python, alone or in a scikit-learn pipeline.

Shape legend: N images, D length of a vector.
"""

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tlray.api.embedding.networks import Placement, of_recipe, of_table, texts_of_recipe, texts_of_table
from tlray.api.embedding.running import OnError, Runner, check_on_error
from tlray.api.keywords import config_of, texts
from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.config.commands.extraction import Engine
from tlray.config.sections.recipe import AnyPool, TokensConfig
from tlray.errors import ConfigError
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.recipe import AnyRecipe, Precision, RecipeFile

if TYPE_CHECKING:
    from tlray.models.encoder.text import TextEncoder


class Encoder:
    """Embeds images by a pretrained network, with the numbers that a table of the same recipe holds.

    A transformer of scikit-learn: it can be cloned, pickled (without its weights, which are loaded again) and put in a
    pipeline; there is nothing to fit. The network is loaded when it is first needed. May be called from several threads.

    Args:
        backbone: `torchvision:<model>`, `timm:<model>`, or the model alone; for texts `gensim:<file>`,
            `sentence-transformers:<folder>` or `model2vec:<folder>`.
        weights: default, an enum name, a timm tag, a path or URI, `package:<name>` or `random:<seed>`.
        weights_sha256: refuse weights of another hash.
        taps: the layers to keep, whose vectors follow one another; default the penultimate.
        pool: how a map or a sequence becomes one vector.
        normalize: divide each vector by its L2 norm.
        precision: number formats, such as `{"compute": "fp32"}`.
        preprocessing: overrides of what the weights say.
        tokens: of a backbone of texts, how a text becomes tokens, such as `{"lowercase": False}`.
        table: in place of a backbone, the URI or path of a table: the encoder that made it, which is checked against the
            table's golden vectors when it is loaded.
        column: of the table's embedding columns, the one to compute; default the only one.
        device: `auto` (CUDA, else Apple's MPS, else the CPU) or a name that torch knows.
        batch_size: images of one forward pass, the last one padded; default by the device. For single images ask for 1.
        engine: what computes on a CPU: `torch`, `openvino`, `onnxruntime` (extras), or `auto`, what a run of `tlray extract`
            found to be the fastest on this machine; without one torch.
        on_error: `raise` an ImageError that names the image that cannot be used, or `nan`: a row of NaN, and a warning in
            the log that counts them.
        keys: other keys of a recipe by their short spelling, such as `compute="fp32"` or `crop=224`.

    Raises:
        ConfigError: an unknown key, a wrong value, or neither or both of backbone and table.
    """

    __module__ = "tlray"  # so do pickles name it, which are to be read wherever its file lies
    _loaded: Runner | None
    _loaded_texts: "TextEncoder | None"

    def __init__(
        self,
        backbone: str | None = None,
        *,
        weights: str = "default",
        weights_sha256: str | None = None,
        taps: Sequence[str] = (),
        pool: AnyPool = "avg",
        normalize: bool = False,
        precision: Precision | Mapping[str, Any] | None = None,
        preprocessing: PreprocessingConfig | Mapping[str, Any] | None = None,
        tokens: TokensConfig | Mapping[str, Any] | None = None,
        table: str | os.PathLike[str] | None = None,
        column: str | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        engine: Engine = "auto",
        on_error: OnError = "raise",
        **keys: Any,
    ) -> None:
        parameters = {name: value for name, value in locals().items() if name in _DEFAULTS}
        self._parameters: dict[str, Any] = parameters | keys
        self.__setstate__(self.__getstate__())
        self._check()

    def __call__(self, images: Any) -> np.ndarray:
        """Embed images, given in any form that can be decoded.

        Args:
            images: of an encoder of texts: a text, or an iterable of texts. Else a path, a URI, a file's bytes, a picture of
                Pillow's, a uint8 array of (H, W), (H, W, C) or (B, H, W, C) with channels last; or an iterable of these, such
                as a list, a data frame's column, a generator, a generator of batches.

        Returns:
            vectors_ND, float32, in the order of the images; a row a image, one row for a single image.

        Raises:
            ConfigError: something that is no image, or as the network's loading.
            ImageError: an image cannot be used; the message names it. With `on_error="nan"` its row is NaN instead.
            BackboneError, WeightsError: there is no such network, or its weights cannot be had.
            GoldenMismatchError: this machine computes other numbers than the table holds.
        """
        on_error = self._parameters["on_error"]
        return self._load().run(images, on_error)

    def encode_text(self, text: str | Sequence[str]) -> np.ndarray:
        """Embed texts, to be compared with images by the cosine of their vectors, where the network has a text tower.

        A text that is longer than the network takes loses its end, which the log says.

        Args:
            text: one, or a list of them.

        Returns:
            vectors_ND, float32, a row a text; of unit length where the recipe normalises.

        Raises:
            ConfigError: the network has no text tower, or these are vectors of another layer than the one it belongs to.
            GoldenMismatchError: this machine computes other numbers than when the table was made.
        """
        given = texts("text", text)
        with self._lock:
            if self._loaded_texts is None:
                config = self._check()
                self._loaded_texts = texts_of_table(*self._table()) if config is None else texts_of_recipe(config)
        return self._loaded_texts.encode(given)

    def transform(self, X: Any) -> np.ndarray:
        """Embed images, as scikit-learn calls it; see `__call__`."""
        return self(X)

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: ARG002
        """Load the network; there is nothing to learn.

        Args:
            X: ignored.
            y: ignored.
        """
        self._load()
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Embed images as `__call__` does; there is nothing to fit.

        Args:
            X: images.
            y: ignored.
        """
        return self.fit(X, y).transform(X)

    @property
    def recipe(self) -> AnyRecipe:
        """All that the vectors depend on; loads the network."""
        return self._load().recipe

    @property
    def dimensions(self) -> int:
        """Length of a vector, D; loads the network."""
        return self._load().length

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """The constructor's arguments, as scikit-learn asks for them.

        Args:
            deep: ignored: no parameter has parameters of its own.
        """
        return dict(self._parameters)

    def set_params(self, **parameters: Any) -> Self:
        """Change arguments of the constructor; the network is loaded anew when it is needed.

        Args:
            parameters: by name.

        Raises:
            ConfigError: an unknown key or a wrong value; nothing is changed.
        """
        before = self._parameters
        self._parameters = before | parameters
        try:
            self._check()
        except ConfigError:
            self._parameters = before
            raise
        self._loaded = self._loaded_texts = None
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """Names of the vector's components, for scikit-learn: `encoder0`, `encoder1`, ...

        Args:
            input_features: ignored.
        """
        return np.array([f"encoder{number}" for number in range(self.dimensions)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        """Always: a pretrained network needs no fit."""
        return True

    def __sklearn_clone__(self) -> "Encoder":
        """A copy that shares the loaded network, so that cross-validation loads it once."""
        copy = type(self)(**self._parameters)
        copy._loaded, copy._loaded_texts = self._loaded, self._loaded_texts
        return copy

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn wants to know of a transformer: it takes strings and pictures, and needs no fit."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags  # only ever called by scikit-learn

        inputs = InputTags(two_d_array=False, three_d_array=True, string=True)
        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=inputs,
            requires_fit=False,
            no_validation=True,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_parameters": self._parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._parameters = state["_parameters"]
        self._lock = threading.Lock()
        self._loaded = self._loaded_texts = None

    def __repr__(self) -> str:
        given = {name: value for name, value in self._parameters.items() if value != _DEFAULTS.get(name)}
        backbone = [repr(given.pop("backbone"))] if "backbone" in given else []
        return f"tlray.Encoder({', '.join([*backbone, *(f'{name}={value!r}' for name, value in given.items())])})"

    def _check(self) -> RecipeConfig | None:
        """The recipe that is asked for, None for a table's.

        Raises:
            ConfigError: a wrong or unknown argument.
        """
        given = {name: value for name, value in self._parameters.items() if value != _DEFAULTS.get(name)}
        own = {name: given.pop(name) for name in _OWN if name in given}
        check_on_error(self._parameters["on_error"])
        if ("backbone" in given) == ("table" in own):
            raise ConfigError(
                "expected one of backbone (such as 'torchvision:resnet50') and table (whose encoder it is to be), given "
                + ("both" if "table" in own else "neither")
            )
        if "table" not in own:
            if "column" in own:
                raise ConfigError(f"column {own['column']!r} is a table's; give taps, the layers of the backbone")
            return config_of(RecipeConfig, {}, given)
        contradicting = sorted(given.keys() - {"weights"})
        if contradicting:
            raise ConfigError(
                f"{', '.join(contradicting)}: the table says so; of its recipe only weights may be given, which move"
            )
        return None

    def _load(self) -> Runner:
        with self._lock:
            if self._loaded is None:
                config = self._check()
                at = self._placement
                self._loaded = of_table(*self._table(), at) if config is None else of_recipe(config, at)
            return self._loaded

    def _table(self) -> tuple[RecipeFile, str]:
        """The recipe file of the table whose encoder it is, and the column."""
        table, weights = Table.open(to_uri(os.fspath(self._parameters["table"]))), self._parameters["weights"]
        file = table.recipe_file if weights == "default" else table.recipe_file.with_weights(weights)
        return file, table.column_of(self._parameters["column"])

    @property
    def _placement(self) -> Placement:
        return Placement(*(self._parameters[name] for name in ("device", "batch_size", "engine")))


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Encoder.__init__).parameters.items()
    if parameter.kind not in (parameter.VAR_KEYWORD,) and name != "self"
}
_OWN = ("table", "column", "device", "batch_size", "engine", "on_error")
"""Parameters that are no keys of a recipe."""
