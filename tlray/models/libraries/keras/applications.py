"""The applications of Keras: which there are, and how images are prepared for each.

A table and not a look into Keras, which takes seconds to import: names are looked up in all libraries. A test holds it against
`keras.applications`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tlray.config.sections.presets import LEVELS, PRESETS
from tlray.recipe import Preprocessing

Mode = Literal["caffe", "tf", "torch", "raw"]

_VALUES: Mapping[Mode, Mapping[str, Any]] = {
    "caffe": PRESETS["keras:caffe"],
    "tf": PRESETS["keras:tf"],
    "torch": PRESETS["keras:torch"],
    "raw": LEVELS,
}


@dataclass(frozen=True)
class Application:
    """How an application takes its images.

    Attributes:
        mode: of its module's `preprocess_input`; `raw` where that changes nothing.
        side: of its square images, in pixels; its classifier takes no other.
    """

    mode: Mode
    side: int


APPLICATIONS: dict[str, Application] = {
    "VGG16": Application("caffe", 224),
    "VGG19": Application("caffe", 224),
    "ResNet50": Application("caffe", 224),
    "ResNet101": Application("caffe", 224),
    "ResNet152": Application("caffe", 224),
    "ResNet50V2": Application("tf", 224),
    "ResNet101V2": Application("tf", 224),
    "ResNet152V2": Application("tf", 224),
    "InceptionV3": Application("tf", 299),
    "InceptionResNetV2": Application("tf", 299),
    "Xception": Application("tf", 299),
    "MobileNet": Application("tf", 224),
    "MobileNetV2": Application("tf", 224),
    "MobileNetV3Small": Application("raw", 224),
    "MobileNetV3Large": Application("raw", 224),
    "DenseNet121": Application("torch", 224),
    "DenseNet169": Application("torch", 224),
    "DenseNet201": Application("torch", 224),
    "NASNetMobile": Application("tf", 224),
    "NASNetLarge": Application("tf", 331),
    "EfficientNetB0": Application("raw", 224),
    "EfficientNetB1": Application("raw", 240),
    "EfficientNetB2": Application("raw", 260),
    "EfficientNetB3": Application("raw", 300),
    "EfficientNetB4": Application("raw", 380),
    "EfficientNetB5": Application("raw", 456),
    "EfficientNetB6": Application("raw", 528),
    "EfficientNetB7": Application("raw", 600),
    "EfficientNetV2B0": Application("raw", 224),
    "EfficientNetV2B1": Application("raw", 240),
    "EfficientNetV2B2": Application("raw", 260),
    "EfficientNetV2B3": Application("raw", 300),
    "EfficientNetV2S": Application("raw", 384),
    "EfficientNetV2M": Application("raw", 480),
    "EfficientNetV2L": Application("raw", 480),
    "ConvNeXtTiny": Application("raw", 224),
    "ConvNeXtSmall": Application("raw", 224),
    "ConvNeXtBase": Application("raw", 224),
    "ConvNeXtLarge": Application("raw", 224),
    "ConvNeXtXLarge": Application("raw", 224),
}


def preparation(mode: Mode, height: int, width: int) -> Preprocessing:
    """How Keras' documentation prepares images: `load_img(target_size=...)`, then `preprocess_input`.

    It resizes to exactly the size, whatever the ratio, and takes the nearest pixel (the default of `keras.utils.load_img`).

    Args:
        mode: of the values.
        height: of the network's input, in pixels.
        width: likewise.
    """
    size = (height, width)
    return Preprocessing(resize=size, fit="squash", crop=size, interpolation="nearest", **_VALUES[mode])
