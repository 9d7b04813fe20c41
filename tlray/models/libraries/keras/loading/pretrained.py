"""What the rest of tlray is told of a network that came from Keras.

Shape legend: B images, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tlray.models.layers.pooling import Layout
from tlray.models.libraries.keras.translation.translate import Translation
from tlray.models.libraries.library import Pretrained
from tlray.models.weights.fit import shown
from tlray.recipe import Preprocessing

LAYOUT = Layout(keeps_nhwc=True)
"""The layout of all of Keras' networks: a map that is kept whole has its channels last, as Keras' own maps have."""


def as_pretrained(
    translation: Translation,
    *,
    backbone: str,
    weights: str,
    weights_sha256: str,
    preprocessing: Preprocessing,
    notes: Sequence[str],
    fixed: str = "",
) -> Pretrained:
    """A network as `Library.load` gives it; the arguments are those of `Pretrained`."""
    if translation.by_keras:
        notes = (*notes, f"{backbone}: computed by Keras and not by torch, which may be slower: {shown(translation.by_keras)}")
    return Pretrained(
        backbone=backbone,
        weights=weights,
        weights_sha256=weights_sha256,
        module=translation.module,
        preprocessing=preprocessing,
        layout=LAYOUT,
        default_tap=translation.ending.tap,
        classes=None if translation.has_classes else (),
        packages=("keras",),
        fixed=fixed,
        notes=notes,
    )


def probe_of(preprocessing: Preprocessing) -> Tensor:
    """An image of noise as a network takes it, images_BCHW, to hold two computations of it against each other."""
    low, high = preprocessing.scale
    mean_C, std_C = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    levels_BHWC = torch.randint(0, 256, (1, *preprocessing.crop, 3), generator=torch.Generator().manual_seed(0))
    return ((levels_BHWC * ((high - low) / 255) + low - mean_C) / std_C).permute(0, 3, 1, 2)
