"""Presets of preprocessing: what a name says of channels, scale, mean and standard deviation, so that nobody copies numbers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from tlray.recipe import UNIT_SCALE

Preset = Literal["keras:caffe", "keras:tf", "keras:torch"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = MappingProxyType(
    {
        "keras:caffe": {
            "channels": "bgr",
            "scale": (0.0, 255.0),
            "mean": (103.939, 116.779, 123.68),
            "std": (1.0, 1.0, 1.0),
        },
        "keras:tf": {
            "channels": "rgb",
            "scale": (-1.0, 1.0),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        },
        "keras:torch": {
            "channels": "rgb",
            "scale": UNIT_SCALE,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
    }
)
"""The modes of `keras.applications.imagenet_utils.preprocess_input`, in the words of `tlray.recipe.Preprocessing`. They say
nothing of the size of images: Keras leaves resizing to its users."""

LEVELS: Mapping[str, Any] = MappingProxyType(
    {"channels": "rgb", "scale": (0.0, 255.0), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
)
"""Levels as they are, for networks that bring 0..255 to what their layers take by themselves."""
