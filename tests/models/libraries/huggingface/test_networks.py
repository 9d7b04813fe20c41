"""Networks of transformers give what transformers' own forward pass gives: class token, mean, pooled output, hidden states."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers import AutoModel

from tests.models.libraries.huggingface.tiny import CONFIGS, PROCESSORS, make, save
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.weights.digest import hash_weights
from tlray.recipe import Precision, golden_images

FAMILIES = ("dinov2", "dinov3_vit", "vit", "siglip", "clip", "convnext", "swin")
PREFIX = {"dinov2": 1, "dinov3_vit": 5, "vit": 1, "clip": 1}
"""Tokens before those of the patches, as the papers and model cards say."""

EXACT = Precision(compute="fp32", storage="full")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in FAMILIES}


def resolve(backbone: object, **settings: object) -> Backbone:
    return resolve_backbone(RecipeConfig.model_validate({"backbone": f"hf:{backbone}", "precision": EXACT} | settings), Path)


def embed(backbone: Backbone) -> dict[str, np.ndarray]:
    return Encoder(backbone, device="cpu", batch_size=2).encode(golden_images(*backbone.recipe.preprocessing.crop))


def plain(folder: Path, backbone: Backbone) -> dict[str, torch.Tensor]:
    """transformers' own forward pass of its own model on the same input."""
    images_BHWC = torch.from_numpy(golden_images(*backbone.recipe.preprocessing.crop))
    inputs_BCHW = to_network_input(images_BHWC, backbone.recipe.preprocessing)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if hasattr(model, "vision_model"):
            outputs = dict(model.vision_model(pixel_values=inputs_BCHW, output_hidden_states=True))
            if hasattr(model, "visual_projection"):
                outputs["image_embeds"] = model.visual_projection(outputs["pooler_output"])
            return outputs
        return dict(model(pixel_values=inputs_BCHW, output_hidden_states=True))


def near(found: np.ndarray, expected: torch.Tensor) -> None:
    expected_BD = expected.flatten(1).numpy()
    assert found.shape == expected_BD.shape
    np.testing.assert_allclose(found, expected_BD, rtol=1e-4, atol=1e-5 * np.abs(expected_BD).max())
    assert np.ptp(found, axis=0).max() > 1e-3  # the images are told apart


def mean_of(kind: str, hidden: torch.Tensor) -> torch.Tensor:
    return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, PREFIX.get(kind, 0) :].mean(1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_mean_pooled_and_hidden_states(kind: str, folders: dict[str, Path]) -> None:
    probe = resolve(folders[kind])
    expected = plain(folders[kind], probe)
    count = len(expected["hidden_states"])
    pooled = "model.visual_projection:input" if kind == "clip" else "pooler_output"
    taps = ("last_hidden_state", pooled, *(f"hidden_states.{index}" for index in range(count)))
    found = embed(backbone := resolve(folders[kind], taps=taps))
    columns = backbone.recipe.columns
    near(found[columns["last_hidden_state"]], mean_of(kind, expected["last_hidden_state"]))
    near(found[columns[pooled]], expected["pooler_output"])
    for index, hidden in enumerate(expected["hidden_states"]):
        near(found[columns[f"hidden_states.{index}"]], mean_of(kind, hidden))


@pytest.mark.parametrize("kind", sorted(PREFIX))
def test_the_class_token(kind: str, folders: dict[str, Path]) -> None:
    by_pooling = resolve(folders[kind], taps=("last_hidden_state", "hidden_states.1"), pool="cls")
    expected = plain(folders[kind], by_pooling)
    found = embed(by_pooling)
    near(found["embedding_last_hidden_state"], expected["last_hidden_state"][:, 0])
    near(found["embedding_hidden_states_1"], expected["hidden_states"][1][:, 0])
    near(embed(resolve(folders[kind], taps=("cls_token",)))["embedding"], expected["last_hidden_state"][:, 0])


def test_networks_without_a_class_token_have_none(folders: dict[str, Path]) -> None:
    for kind in ("siglip", "swin"):
        with pytest.raises(BackboneError, match="has no class token"):
            resolve(folders[kind], taps=("last_hidden_state",), pool="cls")


@pytest.mark.parametrize(
    ("kind", "tap"), [("clip", "image_embeds"), ("siglip", "pooler_output"), ("convnext", "pooler_output")]
)
def test_the_default_is_the_output_that_its_authors_compare(kind: str, tap: str, folders: dict[str, Path]) -> None:
    backbone = resolve(folders[kind])
    assert backbone.recipe.taps == (tap,) and backbone.recipe.backbone == f"hf:{kind}"
    near(embed(backbone)["embedding"], plain(folders[kind], backbone)[tap])


def test_inner_layers_are_tapped_by_transformers_names(folders: dict[str, Path]) -> None:
    backbone = resolve(folders["convnext"], taps=("model.encoder.stages.1",))
    near(embed(backbone)["embedding"], plain(folders["convnext"], backbone)["hidden_states"][2].mean((2, 3)))
    with pytest.raises(
        BackboneError, match=r"no layer 'hidden_state.1'; near ones: hidden_states.1.*its \d parts: model, last_hidden"
    ):
        resolve(folders["convnext"], taps=("hidden_state.1",))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip"])
def test_images_of_another_size(kind: str, folders: dict[str, Path]) -> None:
    """Position embeddings are brought to it by transformers' own code."""
    backbone = resolve(folders[kind], taps=("last_hidden_state",), preprocessing={"resize": 90, "crop": [84, 70]})
    images_BHWC = torch.from_numpy(golden_images(84, 70))
    inputs_BCHW = to_network_input(images_BHWC, backbone.recipe.preprocessing)
    model = AutoModel.from_pretrained(folders[kind]).eval()
    side = getattr(model, "vision_model", model)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        hidden = side(pixel_values=inputs_BCHW, **options).last_hidden_state
    near(embed(backbone)["embedding"], mean_of(kind, hidden))


def test_weights_of_one_tower_and_of_sixteen_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    """A folder of half precision has the numbers that transformers reads from it; the text side is no part of the hash."""
    model = make("clip").half()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((folders["clip"] / "preprocessor_config.json").read_bytes())
    half = resolve(tmp_path)
    assert any("stored as float16" in note for note in half.notes)
    near(embed(half)["embedding"], plain_of(model.float(), half))
    state = safetensors.torch.load_file(folders["clip"] / "model.safetensors")
    other = {name: tensor + ("text" in name) for name, tensor in state.items()}
    safetensors.torch.save_file(other, tmp_path / "model.safetensors")
    assert resolve(tmp_path).recipe.weights_sha256 == resolve(folders["clip"]).recipe.weights_sha256


def plain_of(model: torch.nn.Module, backbone: Backbone) -> torch.Tensor:
    images_BHWC = torch.from_numpy(golden_images(*backbone.recipe.preprocessing.crop))
    inputs_BCHW = to_network_input(images_BHWC, backbone.recipe.preprocessing)
    with torch.no_grad():
        return model.visual_projection(model.vision_model(pixel_values=inputs_BCHW).pooler_output)


def test_pickled_weights_are_read_without_running_code(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders["dinov2"] / name).read_bytes())
    torch.save(safetensors.torch.load_file(folders["dinov2"] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert resolve(tmp_path).recipe.recipe_id == resolve(folders["dinov2"]).recipe.recipe_id


def test_a_pooled_output_that_the_weights_leave_out(folders: dict[str, Path], tmp_path: Path) -> None:
    """A ViT that was published with a classifier has no pooler: nothing is computed with one drawn at random."""
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders["vit"] / name).read_bytes())
    state = safetensors.torch.load_file(folders["vit"] / "model.safetensors")
    kept = {f"vit.{name}": tensor for name, tensor in state.items() if "pooler" not in name}
    safetensors.torch.save_file(
        kept | {"classifier.weight": torch.zeros(5, 32)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    backbone = resolve(tmp_path)
    assert backbone.recipe.taps == ("cls_token",)
    near(embed(backbone)["embedding"], plain(folders["vit"], backbone)["last_hidden_state"][:, 0])
    assert any("pooler" in note and "classifier.weight" in note for note in backbone.notes)
    with pytest.raises(WeightsError, match=r"missing: model.pooler|missing: pooler"):
        resolve(tmp_path, taps=("pooler_output",))


def test_tensors_that_the_network_has_no_place_for(folders: dict[str, Path], tmp_path: Path) -> None:
    """Positions that old files keep, and the other tower, are left out; a layer more is another network's."""
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders["clip"] / name).read_bytes())
    state = safetensors.torch.load_file(folders["clip"] / "model.safetensors")
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert resolve(tmp_path).recipe.recipe_id == resolve(folders["clip"]).recipe.recipe_id
    layer = {name: tensor for name, tensor in state.items() if name.startswith("vision_model.encoder.layers.2.")}
    more = {name.replace("layers.2.", "layers.3."): tensor.clone() for name, tensor in layer.items()}
    safetensors.torch.save_file(state | more, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"\d+ unexpected: vision_model.encoder.layers.3"):
        resolve(tmp_path)


def test_weights_are_given_by_name_folder_file_or_seed(folders: dict[str, Path]) -> None:
    """A recipe names the kind of model, as a folder may move."""
    folder = folders["dinov2"]
    by_folder = resolve(folder).recipe
    assert (by_folder.backbone, by_folder.weights) == ("hf:dinov2", str(folder))
    by_kind = resolve("dinov2", weights=f"{folder}/").recipe
    by_file = resolve("dinov2", weights=str(folder / "model.safetensors")).recipe
    assert by_folder.recipe_id == by_kind.recipe_id == by_file.recipe_id
    drawn = [resolve(folder, weights=f"random:{seed}").recipe for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and load_backbone(drawn[0], Path).recipe == drawn[0]


def test_weights_that_were_trained_from_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """As tlray writes them, with a configuration beside them: texts are in another space, so there is no text tower."""
    for kind in ("clip", "dinov2"):
        backbone = resolve(folders[kind])
        safetensors.torch.save_file(backbone.module.state_dict(), tmp_path / "network.safetensors")
        for name, data in backbone.files.items():
            (tmp_path / name).write_bytes(data)
        update = {"weights": str(tmp_path / "network.safetensors"), "weights_sha256": hash_weights(backbone.module)}
        again = load_backbone(backbone.recipe.model_copy(update=update), Path)
        assert again.text_tower is None
        np.testing.assert_array_equal(embed(again)["embedding"], embed(backbone)["embedding"])


def test_what_is_no_model_for_it(folders: dict[str, Path], tmp_path: Path) -> None:
    def config(**settings: object) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return tmp_path

    with pytest.raises(WeightsError, match=r"has no config.json"):
        resolve(tmp_path)
    with pytest.raises(BackboneError, match=r"holds a dinov2, but the backbone is hf:vit; give hf:dinov2"):
        resolve("vit", weights=str(folders["dinov2"]))
    with pytest.raises(BackboneError, match=r"'invented', which transformers .* cannot build by itself; code .* never run"):
        resolve(config(model_type="invented", auto_map={"AutoConfig": "code.Config"}))
    with pytest.raises(BackboneError, match=r"is a bert, from which hf: takes no image embeddings"):
        resolve(config(model_type="bert"))
    with pytest.raises(BackboneError, match=r"is a siglip2: .*NaFlex.*siglip2-base-patch16-224"):
        resolve(config(model_type="siglip2"))
    with pytest.raises(WeightsError, match=r"hf:dinov2 is a kind of model and has no weights of its own"):
        resolve("dinov2")
    with pytest.raises(ConfigError, match=r"does not say how images are prepared"):
        resolve("dinov2", weights="random:0")
    with pytest.raises(BackboneError, match=r"no kind of model 'nothing'"):
        resolve("nothing", weights="random:0")
    with pytest.raises(WeightsError, match=r"missing: "):
        config(**json.loads((folders["dinov2"] / "config.json").read_text()))
        safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
        resolve(tmp_path)


def test_kinds_are_the_ones_that_transformers_has() -> None:
    assert set(FAMILIES) == set(CONFIGS)


def test_what_is_not_said_of_the_preparation_is_the_processors(folders: dict[str, Path], tmp_path: Path) -> None:
    """What a user says stands beside it: the order of channels stays, as does how images are brought to the size."""
    said = {"resize": 64, "crop": 56, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
    processor = json.loads((folders["clip"] / "preprocessor_config.json").read_text())
    assert resolve(folders["clip"], preprocessing=said).recipe.preprocessing.fit == "cover"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["vit"] / name).read_bytes())
    flipped = processor | {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(flipped))
    flip = resolve(tmp_path, preprocessing=said)
    assert flip.recipe.preprocessing.channels == "bgr" and not flip.notes
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "DetrImageProcessor"}))
    odd = resolve(tmp_path, preprocessing=said)
    assert "assumed of its images beside what is given: fit squash, channels rgb, scale (0.0, 1.0)" in odd.notes[-1]
    whole = said | {"fit": "cover", "channels": "rgb", "scale": [0, 1]}
    assert not resolve(tmp_path, preprocessing=whole).notes


def test_a_class_token_that_the_model_takes_off_is_no_layer(tmp_path: Path) -> None:
    """CvT gives a map, whose first channel is no class token."""
    config = transformers.CvtConfig(
        embed_dim=[8, 16, 32], num_heads=[1, 2, 2], depth=[1, 2, 3], patch_sizes=[7, 3, 3], patch_stride=[4, 2, 2]
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["swin"]))
    backbone = resolve(tmp_path)
    assert backbone.recipe.taps == ("last_hidden_state",)
    inputs_BCHW = to_network_input(torch.from_numpy(golden_images(64, 64)), backbone.recipe.preprocessing)
    with torch.no_grad():
        expected_BCHW = model(pixel_values=inputs_BCHW).last_hidden_state
    near(embed(backbone)["embedding"], expected_BCHW.mean((2, 3)))
    with pytest.raises(BackboneError, match="no layer 'cls_token'"):
        resolve(tmp_path, taps=("cls_token",))
