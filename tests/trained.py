"""Model folders as `tlray train` leaves them, with heads of seeded random weights on a small network."""

import math
from pathlib import Path

import safetensors.torch
import timm
import torch

from tests.photos import write_photos
from tlray.config import RecipeConfig
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.layers.heads import Head, HeadSpec
from tlray.predictor import Task
from tlray.recipe import Precision
from tlray.training.model.model import ModelCard, now, package_versions, save_model

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
FP32 = Precision(compute="fp32", storage="half")


def save_weights(path: Path, seed: int = 3) -> dict[str, torch.Tensor]:
    """A state dict of timm's test_resnet as a file."""
    torch.manual_seed(seed)
    state = timm.create_model("test_resnet").state_dict()
    safetensors.torch.save_file(state, path)
    return state


def write_lake(folder: Path, photos: int, bad: bytes) -> Path:
    """Photos, a file among them that is none, weights and a model."""
    write_photos(folder / "photos", photos)
    (folder / "photos" / "bad.jpg").write_bytes(bad)
    save_weights(folder / "weights.safetensors")
    save_trained(folder / "model", folder / "weights.safetensors")
    return folder


def save_trained(
    folder: Path,
    weights: Path,
    *,
    task: Task = "single",
    seed: int = 0,
    fine_tuned: bool = False,
    with_golden: bool = True,
) -> Head:
    """A model folder of an MLP on test_resnet.

    Args:
        folder: to write.
        weights: of the network.
        task: what it is said to be trained for.
        seed: of the head.
        fine_tuned: put the network's weights into the folder, and say in the recipe that they are somewhere else.
        with_golden: keep the recipe's golden vectors too.
    """
    backbone = resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights=str(weights), precision=FP32), local_copy)
    recipe = backbone.recipe.model_copy(update={"weights": "/gone/network.safetensors"}) if fine_tuned else backbone.recipe
    torch.manual_seed(seed)
    inputs = math.prod(backbone.shapes["embedding"])
    head = Head.of(HeadSpec(kind="mlp", inputs=inputs, outputs=len(CLASSES), hidden=(16,), dropout=0.5)).eval()
    file = make_recipe_file(backbone)
    golden_BD = torch.tensor(file.golden["embedding"])
    head.mean_D.copy_(golden_BD.mean(dim=0))  # so that photos get different labels
    head.scale_D.copy_(1 / (golden_BD.std(dim=0) + 5e-3))
    card = ModelCard(
        created=now(),
        task=task,
        classes=CLASSES,
        head=head.spec,
        recipe=recipe,
        recipe_id=recipe.recipe_id,
        tap=recipe.taps[0],
        table=None,
        table_version=None,
        source=None,
        training={},
        metrics={},
        config={},
        versions=package_versions(),
    )
    files = {"recipe.json": file.to_json()} if with_golden else {}
    save_model(f"file://{folder}", card, head, backbone.module.state_dict() if fine_tuned else None, files=files)
    return head


def plain_scores(head_file: Path, features_BD: torch.Tensor) -> torch.Tensor:
    """What the head's file means, computed from its tensors alone."""
    state = safetensors.torch.load_file(head_file)
    hidden = (features_BD - state["mean_D"]) * state["scale_D"] @ state["layers.0.weight"].T + state["layers.0.bias"]
    return hidden.relu() @ state["layers.3.weight"].T + state["layers.3.bias"]
