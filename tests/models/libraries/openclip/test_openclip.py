"""open_clip's models give what open_clip itself computes of images and texts, by names, folders and checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.models.libraries.openclip.tiny import CONFIGS, save
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.lake.image.resize import apply_preprocessing
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.text import open_text_encoder
from tlray.models.libraries.library import Request
from tlray.models.libraries.openclip.source import find_source
from tlray.models.weights.digest import hash_weights
from tlray.recipe import Precision, golden_images

SIZES = ((97, 130), (201, 90))
TEXTS = {
    "siglip": ["a photo of a cat", "Two dogs, playing in the snow!", "red"],
    "others": ["a photo of a cat", "Two dogs, playing in the SNOW &amp; rain!", "red"],
}

EXACT = Precision(compute="fp32", storage="full")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in CONFIGS}


def resolve(backbone: object, **settings: object) -> Backbone:
    return resolve_backbone(
        RecipeConfig.model_validate({"backbone": f"openclip:{backbone}", "precision": EXACT} | settings), Path
    )


def pictures() -> list[Image.Image]:
    return [Image.fromarray(image_HWC) for size in SIZES for image_HWC in golden_images(*size)[:2]]


@pytest.mark.parametrize("kind", CONFIGS)
def test_images_texts_and_scores_are_open_clips(kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"local-dir:{folders[kind]}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model, tokenizer = model.eval(), open_clip.get_tokenizer(name)
    texts = TEXTS.get(kind) or TEXTS["others"]
    backbone = resolve(folders[kind])
    assert backbone.recipe.taps == ("image_embeds",)
    preprocessing = backbone.recipe.preprocessing
    pixels_BHWC = np.stack([apply_preprocessing(picture, preprocessing) for picture in pictures()])
    theirs_BCHW = torch.stack([transform(picture) for picture in pictures()])
    inputs_BCHW = to_network_input(torch.from_numpy(pixels_BHWC), preprocessing)
    # Pillow's bicubic and torch's differ by more than 2 levels in a few pixels beside the sharpest edges.
    levels = ((inputs_BCHW - theirs_BCHW) * torch.tensor(preprocessing.std)[:, None, None] * 255).abs()
    assert (levels > 2.01).float().mean() < 1e-3 and levels.max() < 12 and levels.mean() < 0.1
    images_BD = Encoder(backbone, device="cpu", batch_size=2).encode(pixels_BHWC)["embedding"]
    encoder = open_text_encoder(make_recipe_file(backbone), "embedding", Path, backbone=backbone)
    texts_BD = encoder.encode(texts)
    with torch.no_grad():
        expected_BD, expected_texts_BD = [
            features_BD.numpy()
            for features_BD in (
                model.encode_image(inputs_BCHW, normalize=False),
                model.encode_text(tokenizer(texts), normalize=False),
            )
        ]
    np.testing.assert_allclose(images_BD, expected_BD, rtol=1e-3, atol=1e-4 * np.abs(expected_BD).max())
    np.testing.assert_allclose(texts_BD, expected_texts_BD, rtol=1e-3, atol=1e-4 * np.abs(expected_texts_BD).max())
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    with monkeypatch.context() as patched:  # golden texts show that the weights are the table's: no image tower is built
        patched.delattr("tlray.models.libraries.openclip.load.build_visual")
        alone = open_text_encoder(make_recipe_file(backbone), "embedding", Path)
    np.testing.assert_array_equal(alone.encode(texts), texts_BD)
    with torch.no_grad():
        image_BD, text_BD = model.encode_image(inputs_BCHW, normalize=True), model.encode_text(tokenizer(texts), normalize=True)
    cosines = images_BD @ texts_BD.T / np.linalg.norm(images_BD, axis=1)[:, None] / np.linalg.norm(texts_BD, axis=1)
    np.testing.assert_allclose(cosines, (image_BD @ text_BD.T).numpy(), atol=1e-5)
    assert np.ptp(cosines, axis=0).max() > 1e-3 and np.ptp(cosines, axis=1).max() > 1e-3


def test_inner_layers(folders: dict[str, Path]) -> None:
    taps = ("visual.transformer.resblocks.0", "visual.conv1")
    backbone = resolve(folders["vit"], taps=taps)
    images_BHWC = golden_images(56, 56)
    found = Encoder(backbone, device="cpu", batch_size=2).encode(images_BHWC)
    model = open_clip.create_model(f"local-dir:{folders['vit']}").eval()
    seen = {}
    for tap in taps:
        model.get_submodule(tap).register_forward_hook(lambda _m, _a, output, tap=tap: seen.update({tap: output}))
    with torch.no_grad():
        model.encode_image(to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing))
    expected = {taps[0]: seen[taps[0]][:, 1:].mean(1), taps[1]: seen[taps[1]].mean((2, 3))}
    for tap in taps:
        np.testing.assert_allclose(found[backbone.recipe.columns[tap]], expected[tap].numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("kind", "crop"), [("vit", [70, 84]), ("siglip", [128, 160])])
def test_images_of_another_size(kind: str, crop: list[int], folders: dict[str, Path]) -> None:
    backbone = resolve(folders[kind], preprocessing={"resize": 170, "crop": crop})
    images_BHWC = golden_images(*crop)
    model = open_clip.create_model(f"local-dir:{folders[kind]}", force_image_size=tuple(crop) if kind == "vit" else None).eval()
    if kind == "siglip":
        model.visual.set_input_size(tuple(crop))
    with torch.no_grad():
        expected = model.encode_image(to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)).numpy()
    found = Encoder(backbone, device="cpu", batch_size=2).encode(images_BHWC)["embedding"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert backbone.recipe.weights_sha256 == resolve(folders[kind]).recipe.weights_sha256


def test_another_size_that_cannot_be(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"cannot take images of crop 96x96: its pooling is for one size"):
        resolve(folders["resnet"], preprocessing={"resize": 96, "crop": 96})


def test_a_checkpoint_of_a_named_model(tmp_path: Path) -> None:
    """As open_clip's trainer writes it; what is drawn from a seed is the same in every process."""
    drawn = resolve("ViT-S-32", weights="random:0", preprocessing={"crop": 64, "resize": 64})
    again = load_backbone(drawn.recipe, Path)
    assert again.recipe == drawn.recipe and drawn.recipe.backbone == "openclip:ViT-S-32"
    torch.manual_seed(3)
    model = open_clip.create_model("ViT-S-32", load_weights=False).eval()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "mine", "state_dict": state}, tmp_path / "epoch_3.pt")
    trained = resolve("ViT-S-32", weights=str(tmp_path / "epoch_3.pt"))
    assert f"{tmp_path / 'epoch_3.pt'} does not say how its images are to be prepared" in trained.notes[0]
    images_BHWC = golden_images(224, 224)[:1]
    with torch.no_grad():
        expected = model.encode_image(to_network_input(torch.from_numpy(images_BHWC), trained.recipe.preprocessing)).numpy()
    found = Encoder(trained, device="cpu", batch_size=1).encode(images_BHWC)["embedding"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    tower = trained.text_tower()
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer("ViT-S-32")(["a dog", "x " * 100])).numpy()
    np.testing.assert_allclose(tower.encode(["a dog", "x " * 100]), texts, rtol=1e-3, atol=1e-4 * np.abs(texts).max())
    assert tower.count_cut(["a dog", "x " * 100, "x " * 75, "x " * 76]) == 2


def test_every_tag_gets_the_activation_that_it_was_trained_with() -> None:
    """open_clip itself only warns; by our names a wrong one cannot be had."""
    for model, tag in open_clip.list_pretrained():
        source = find_source(Request(f"{model}/{tag}"), Path)
        is_quick = bool(open_clip.pretrained.get_pretrained_cfg(model, tag).get("quick_gelu"))
        assert bool(source.model.get("quick_gelu")) == (is_quick or model == "roberta-ViT-B-32")  # whose tag leaves it out
        again = find_source(Request(source.backbone.removeprefix("openclip:"), source.weights), Path)
        assert (again.backbone, again.weights, again.model) == (source.backbone, source.weights, source.model)
    quick = find_source(Request("ViT-B/32/openai"), Path)
    assert quick.backbone == "openclip:ViT-B-32-quickgelu" and quick.weights == "openclip:ViT-B-32-quickgelu/openai"
    assert "trained with QuickGELU" in quick.notes[0]


def test_a_file_is_prepared_and_computed_as_the_tag_says_that_it_is_given_for() -> None:
    """Weights of a file say neither: the name may, with a tag."""
    request = Request("ViT-B-32/openai", "w/file.safetensors")
    found = find_source(request, Path)
    assert found.backbone == "openclip:ViT-B-32-quickgelu" and found.model["quick_gelu"] and found.weights == request.weights
    again = find_source(Request("ViT-B-32-quickgelu", request.weights), Path)
    assert again.model["quick_gelu"] and again.backbone == found.backbone
    assert find_source(Request("ViT-B-16-SigLIP/webli", request.weights), Path).preprocess["resize_mode"] == "squash"
    with pytest.raises(WeightsError, match="ViT-B-32 has no weights 'laion3b'"):
        find_source(Request("ViT-B-32/laion3b", request.weights), Path)


def test_open_clips_own_lines_stay_away(folders: dict[str, Path]) -> None:
    """They say that a network is random which is not, and give Python's root logger a handler that prints others' too."""
    code = (
        "import logging, sys; from pathlib import Path; from tlray.models.libraries.library import Request\n"
        "from tlray.models.libraries.openclip.load import load\n"
        "load(Request(sys.argv[1]), Path).text_tower(); assert not logging.getLogger().handlers; logging.warning('mine')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folders["vit"])], capture_output=True, text=True, check=True)
    assert done.stdout == "" and [line for line in done.stderr.splitlines() if "WARNING" in line] == ["WARNING:root:mine"]


def test_names_that_there_are_not(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no backbone 'openclip:ViT-B32'; near ones: openclip:ViT-B-32"):
        resolve("ViT-B32/openai")
    with pytest.raises(
        WeightsError, match=r"ViT-B-32 has several weights; its tags: openai, .*Give one, as openclip:ViT-B-32/openai"
    ):
        resolve("ViT-B-32")
    with pytest.raises(WeightsError, match=r"ViT-B-32 has no weights 'laion3b'; its tags"):
        resolve("ViT-B-32/laion3b")
    with pytest.raises(WeightsError, match=r"has no open_clip_config.json"):
        resolve(tmp_path)
    with pytest.raises(BackboneError, match=r"holds openclip:config-.*, but the backbone is openclip:ViT-B-32"):
        resolve("ViT-B-32", weights=str(folders["vit"]))
    with pytest.raises(WeightsError, match=r"does not fit openclip:RN50: .* missing"):
        (tmp_path / "w.safetensors").write_bytes((folders["vit"] / "open_clip_model.safetensors").read_bytes())
        resolve("RN50", weights=str(tmp_path / "w.safetensors"))


def test_a_folder_is_named_by_its_configuration(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = resolve(folders["vit"]).recipe
    assert recipe.weights == str(folders["vit"]) and recipe.backbone.startswith("openclip:config-")
    assert resolve(folders["quick"]).recipe.backbone != recipe.backbone
    moved = tmp_path / "moved"
    folders["vit"].rename(moved)
    try:
        assert resolve(moved).recipe.recipe_id == recipe.recipe_id
        assert resolve(recipe.backbone.removeprefix("openclip:"), weights=str(moved)).recipe.recipe_id == recipe.recipe_id
    finally:
        moved.rename(folders["vit"])
    named = tmp_path / "named"
    named.mkdir()
    document = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    (named / "open_clip_config.json").write_text(json.dumps(document))
    assert find_source(Request(str(named)), Path).backbone == "openclip:ViT-B-32"


def test_weights_that_were_trained_from_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """As tlray writes them, with a configuration beside them: texts are in another space, so there is no text tower."""
    for kind, crop in (("vit", 56), ("vit", 70), ("siglip", 160)):
        backbone = resolve(folders[kind], preprocessing={"resize": crop, "crop": crop})
        safetensors.torch.save_file(backbone.module.state_dict(), tmp_path / "network.safetensors")
        for name, data in backbone.files.items():
            (tmp_path / name).write_bytes(data)
        update = {"weights": str(tmp_path / "network.safetensors"), "weights_sha256": hash_weights(backbone.module)}
        again = load_backbone(backbone.recipe.model_copy(update=update), Path)
        assert again.text_tower is None and not again.fixed
        images_BHWC = golden_images(crop, crop)
        one, other = (Encoder(found, device="cpu", batch_size=2).encode(images_BHWC) for found in (backbone, again))
        np.testing.assert_array_equal(one["embedding"], other["embedding"])
    assert "another size" in resolve(folders["siglip"], preprocessing={"resize": 128, "crop": 128}).fixed
