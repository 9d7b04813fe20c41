"""The pixels of transformers' own image processors, by their configurations alone; what a recipe cannot say is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from tests.models.libraries.huggingface.tiny import PROCESSORS
from tlray.errors import ConfigError
from tlray.lake.image.resize import apply_preprocessing
from tlray.models.backbones.network_input import to_network_input
from tlray.models.libraries.huggingface.checkpoint.files import folder_files
from tlray.models.libraries.huggingface.processor import read_preprocessing
from tlray.recipe import Preprocessing, golden_images

SIZES = ((640, 427), (90, 131), (67, 67), (203, 97))
"""Among them sizes that leave 3 pixels beside the crop, where half of that is rounded by some and cut by others."""

AS_PUBLISHED = {
    "facebook/dinov2-base": {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
    },
    "openai/clip-vit-base-patch32": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    },
    "convnext of 384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 1.0},
    "deit": {"image_processor_type": "DeiTImageProcessor"},
    "apple/mobilevit-small": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256},
        "do_flip_channel_order": True,
        "resample": 2,
    },
    "without scaling": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
    "of another scale": {
        "image_processor_type": "ViTImageProcessor",
        "rescale_factor": 1 / 127.5,
        "image_mean": 1.0,
        "image_std": 1.0,
    },
}


def read(folder: Path, config: dict, kind: str = "vit") -> Preprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return read_preprocessing(folder_files(str(folder), Path), str(folder))


@pytest.mark.parametrize("name", [*PROCESSORS, *AS_PUBLISHED])
def test_pixels_are_those_of_the_processor(name: str, tmp_path: Path) -> None:
    """To within 2 levels of 255, which roundings of resized pixels may differ by, and a fifth of one on average.

    DINOv3's processor resizes numbers and not levels, from which ours, that are rounded, are a quarter away on average.
    """
    mean = 0.26 if name == "dinov3_vit" else 0.2
    kind = name if name in PROCESSORS else "clip" if "clip" in name else "vit"
    preprocessing = read(tmp_path, PROCESSORS.get(name) or AS_PUBLISHED[name], kind)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    low, high = preprocessing.scale
    for index, (width, height) in enumerate(SIZES):
        image = Image.fromarray(golden_images(height, width)[index])
        expected_CHW = processor(image, return_tensors="pt")["pixel_values"][0].float().numpy()
        pixels_BHWC = torch.tensor(apply_preprocessing(image, preprocessing))[None]
        found_CHW = to_network_input(pixels_BHWC, preprocessing)[0].numpy()
        assert found_CHW.shape == expected_CHW.shape
        levels = (found_CHW - expected_CHW) * np.array(preprocessing.std)[:, None, None] * 255 / (high - low)
        assert np.abs(levels).max() < 2.01 and np.abs(levels).mean() < mean, (name, width, height)


REFUSED = {
    r"size: shortest_edge 224; no centre crop.* many sizes": {"size": {"shortest_edge": 224}},
    r"size: .*longest_edge 300.*many sizes": {"size": {"shortest_edge": 200, "longest_edge": 300}},
    r"has do_pad": {"do_pad": True},
    r"resizes to 224x224 and crops 256x256, so it would pad": {
        "do_center_crop": True,
        "crop_size": {"height": 256, "width": 256},
    },
    r"DetrImageProcessor, whose way a recipe cannot say": {"image_processor_type": "DetrImageProcessor"},
    r"Siglip2ImageProcessor, whose way": {"image_processor_type": "Siglip2ImageProcessor"},
    r"PerceiverImageProcessor, whose way": {"image_processor_type": "PerceiverImageProcessor"},
    r"EfficientNetImageProcessor, whose way": {"image_processor_type": "EfficientNetImageProcessor"},
    r"cannot be read by transformers": {
        "image_processor_type": "InventedImageProcessor",
        "auto_map": {"AutoImageProcessor": "a.B"},
    },
    r"has 2 means or deviations": {"image_mean": [0.5, 0.5]},
    r"resample 9": {"resample": 9},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_recipe_cannot_say_is_refused(message: str, tmp_path: Path) -> None:
    usual = {"image_processor_type": "ViTImageProcessor"}
    with pytest.raises(ConfigError, match=f"(?s){message}.*give recipe.preprocessing"):
        read(tmp_path, usual | REFUSED[message])


def test_a_folder_that_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match=r"has no preprocessor_config.json, which says how images are prepared; give recipe"):
        read_preprocessing(folder_files(str(tmp_path), Path), str(tmp_path))
