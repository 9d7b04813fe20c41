"""A library of backbones with two towers, as a package of others would add it.

As in CLIP, an image and a sentence about it have vectors near to each other; a sentence is the mean of its words.

Shape legend: B images or texts, D embedding length.
"""

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tests.words.pictures import SIDE, TRAINED, picture, sentence
from tlray.errors import WeightsError
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.weights.digest import hash_tensors
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Preprocessing

LENGTH, MOST_WORDS, BUCKETS = 64, 8, 2**13
SHIFT = 2
MEAN, STD = 0.5, 0.25


def image_tower() -> nn.Sequential:
    """From images_BCHW to features_BD, which its last layer gives."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 96)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * (SIDE // 8) ** 2, LENGTH))


TAP = "10"


class TextSide(nn.Module):
    """From sentences to features_BD."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, LENGTH, mode="mean")
        self.layers = nn.Sequential(nn.Linear(LENGTH, 128), nn.ReLU(), nn.Linear(128, LENGTH))

    def forward(self, texts: Sequence[str]) -> Tensor:
        numbers = [numbers_of(text)[:MOST_WORDS] for text in texts]
        starts = np.cumsum([0, *(len(each) for each in numbers)])[:-1]
        flat = torch.tensor([number for each in numbers for number in each], dtype=torch.long)
        return self.layers(self.words(flat, torch.from_numpy(starts)))


def numbers_of(text: str) -> list[int]:
    """The words of a text, each by its number; a text without one is the word of no letters."""
    words = re.findall(r"[a-z0-9]+", text.lower()) or [""]
    return [zlib.crc32(word.encode()) % BUCKETS for word in words]


class Towers(nn.Module):
    """Both, and what cosines are multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = image_tower(), TextSide()
        self.logit_scale = nn.Parameter(torch.tensor(3.0))


class Texts:
    """The text tower as tlray takes it."""

    length = LENGTH

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
        self.logit_scale = towers.logit_scale.exp().item()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            return self._towers.text(texts).numpy()

    def count_cut(self, texts: Sequence[str]) -> int:
        return sum(len(numbers_of(text)) > MOST_WORDS for text in texts)


class Library:
    name = "towers"

    def models(self) -> Sequence[str]:
        return ["words"]

    def has(self, model: str) -> bool:
        return model == "words"

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        path = fetch(request.weights)
        if not path.is_file():
            raise WeightsError(f"there is no weights file {request.weights}")
        state = safetensors.torch.load_file(path)
        towers = _filled(state)
        return Pretrained(
            backbone="towers:words",
            weights=request.weights,
            weights_sha256=hash_tensors(state.items()),
            module=towers.image,
            preprocessing=Preprocessing(
                resize=(SIDE, SIDE), fit="squash", crop=(SIDE, SIDE), interpolation="bilinear", mean=(MEAN,) * 3, std=(STD,) * 3
            ),
            default_tap=TAP,
            text_tower=lambda: Texts(_filled(state)),
            text_tap=TAP,
        )


def _filled(state: Mapping[str, Tensor]) -> Towers:
    with torch.random.fork_rng():
        towers = Towers()
    towers.load_state_dict(state)
    return towers.eval()


def train(path: Path, *, steps: int = 250, copies: int = 24) -> None:
    """Train both towers by InfoNCE, as CLIP is, on pictures and sentences of `TRAINED`, and save them.

    Args:
        path: a safetensors file.
        steps: each with one picture of every pair.
        copies: pictures of each pair.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = Towers().train()
        pixels = np.stack([[np.asarray(picture(*pair, seed)) for seed in range(copies)] for pair in TRAINED])
        images_PSCHW = ((torch.from_numpy(pixels).float() / 255 - MEAN) / STD).permute(0, 1, 4, 2, 3)
        optimizer = torch.optim.AdamW(towers.parameters(), 2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
        chance = random.Random(0)
        here = torch.arange(len(TRAINED))
        for _ in range(steps):
            images_BCHW = images_PSCHW[here, torch.randint(copies, (len(TRAINED),))]
            shifts = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()  # copies of a picture elsewhere cost less than others
            images_BD = normalize(towers.image(images_BCHW.roll(shifts, (2, 3))), dim=1)
            texts_BD = normalize(towers.text([sentence(*pair, chance) for pair in TRAINED]), dim=1)
            logits_BB = towers.logit_scale.clamp(max=4.6).exp() * images_BD @ texts_BD.T
            loss = (cross_entropy(logits_BB, here) + cross_entropy(logits_BB.T, here)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    state = {name: tensor.detach().contiguous() for name, tensor in towers.state_dict().items()}
    safetensors.torch.save_file(state, path)
