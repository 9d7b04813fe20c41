"""The section `recipe`: what the user asks of the network; `tlray.models` resolves it to a `tlray.recipe.Recipe`."""

from typing import Literal

from pydantic import Field, PositiveFloat

from tlray.config.sections.presets import Preset
from tlray.config.sections.section import Section, Side
from tlray.recipe import Channels, Fit, Interpolation, Precision


def _is_none(value: object) -> bool:
    return value is None


class PreprocessingConfig(Section):
    """Overrides of what the weights say about preprocessing; what is not given comes from the weights."""

    resize: Side = Field(None, description="a side, or [height, width], of the box that fit refers to")
    fit: Fit | None = Field(None, description="cover (shortest side), contain (longest side) or squash (exactly)")
    crop: Side = Field(None, description="centre crop: a square's side, or [height, width]")
    interpolation: Interpolation | None = Field(None, description="the filter that images are resized by")
    antialias: bool | None = Field(None, description="widen the filter where images are made smaller, as Pillow does")
    scaled_decoding: bool | None = Field(
        None,
        description="shrink JPEGs to 1/2, 1/4 or 1/8 while decoding, to no less than twice the resized size; default false",
    )
    # Not in documents where they are not given: they came later, and what was trained before them is still the same.
    preset: Preset | None = Field(
        None,
        exclude_if=_is_none,
        description="channels, scale, mean and std by a name: keras:caffe, keras:tf or keras:torch, unless said beside it",
    )
    channels: Channels | None = Field(
        None, exclude_if=_is_none, description="the order of channels that the network takes: rgb or bgr"
    )
    scale: tuple[float, float] | None = Field(
        None,
        exclude_if=_is_none,
        description="what 0..255 becomes before mean and std: [0, 1], as most networks take it, [-1, 1] or [0, 255]",
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="subtracted; of values in scale, in the order of channels"
    )
    std: tuple[float, float, float] | None = Field(None, description="divided by, after that; likewise")


AnyPool = Literal["avg", "max", "gem", "cls", "flatten", "none", "sif"]
"""Pools of networks and of word vectors; which of them have which, the backbone says."""


class TokensConfig(Section):
    """How a text becomes tokens; what is not given is found in the vectors."""

    split: Literal["words", "whitespace"] | None = Field(
        None, description="words (runs of letters, marks and digits) or whitespace; of word vectors, default words"
    )
    lowercase: bool | None = Field(None, description="default: where no word of the vectors has a capital letter")
    prompt: str = Field("", description="put before each text, for a sentence encoder that wants it")
    frequencies: str | None = Field(
        None, description="for pool sif: a file with a word and its count on each line; default the vectors' own counts"
    )
    a: PositiveFloat = Field(1e-3, description="for pool sif: a word of probability p weighs a / (a + p)")

    @property
    def said(self) -> tuple[str, ...]:
        """The keys that have another value than by default."""
        return tuple(name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default)


class RecipeConfig(Section):
    """What the user asks of a recipe; `tlray.models` completes it from the backbone and its weights."""

    backbone: str = Field(
        description="torchvision:<model>, timm:<model>, keras:<model>, hf:<model>, openclip:<model>/<tag>, onnx:<file>; or the "
        "model alone, as a library has it; for texts gensim:<file>, sentence-transformers:<folder> or model2vec:<folder>"
    )
    weights: str = Field(
        "default",
        description="default, an enum name, a timm tag, a file's or a hub folder's path or URI, package:<name>, random:<seed>",
    )
    weights_sha256: str | None = Field(None, description="refuse weights of another hash (as `tlray show` prints it)")
    taps: tuple[str, ...] = Field((), description="layers to keep; default the penultimate")
    pool: AnyPool = Field(
        "avg", description="how a map or a sequence becomes one vector; none keeps all of it; of word vectors avg, max or sif"
    )
    normalize: bool = Field(False, description="divide each vector by its L2 norm")
    precision: Precision = Precision()
    preprocessing: PreprocessingConfig = PreprocessingConfig.model_construct()
    tokens: TokensConfig = TokensConfig.model_construct()
