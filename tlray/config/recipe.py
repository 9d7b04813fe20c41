"""The section `recipe`: what the user asks of the network; `tlray.models` resolves it to a `tlray.recipe.Recipe`."""

from pydantic import Field

from tlray.config.presets import Preset
from tlray.config.section import Section, Side
from tlray.recipe import Channels, Fit, Interpolation, Pool, Precision


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


class RecipeConfig(Section):
    """What the user asks of a recipe; `tlray.models` completes it from the backbone and its weights."""

    backbone: str = Field(description="torchvision:<model>, timm:<model>, onnx:<file>; or the model alone, as a library has it")
    weights: str = Field(
        "default",
        description="default, an enum name, a timm tag, a file's or a hub folder's path or URI, package:<name>, random:<seed>",
    )
    weights_sha256: str | None = Field(None, description="refuse weights of another hash (as `tlray show` prints it)")
    taps: tuple[str, ...] = Field((), description="layers to keep; default the penultimate")
    pool: Pool = Field("avg", description="how a map or a sequence becomes one vector; none keeps all of it")
    normalize: bool = Field(False, description="divide each vector by its L2 norm")
    precision: Precision = Precision()
    preprocessing: PreprocessingConfig = PreprocessingConfig.model_construct()
