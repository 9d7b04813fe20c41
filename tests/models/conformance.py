"""What every library of backbones must do; its tests subclass `LibraryConformance` and say what its authors' own code computes.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from tlray.config import RecipeConfig
from tlray.errors import BackboneError, GoldenMismatchError, RecipeMismatchError, WeightsError
from tlray.lake.image.resize import apply_preprocessing
from tlray.lake.table.recipe_check import check_recipe
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_encoder, make_recipe_file
from tlray.models.libraries.library import Request
from tlray.models.libraries.names import full_name, library_names, open_library
from tlray.recipe import Precision, RecipeFile, golden_images

SIZES = ((640, 427), (90, 130))

IN_A_NEW_PROCESS = """
import sys
from pathlib import Path
from tlray.models.encoder.golden import make_encoder
from tlray.recipe import RecipeFile
file = RecipeFile.from_json(Path(sys.argv[1]).read_bytes(), sys.argv[1])
make_encoder(file, Path, where="a new process")
print(file.recipe_id)
"""


class LibraryConformance:
    """Tests of a library, by one small backbone of it.

    Attributes:
        backbone: its full name.
        taps: layers of it, of which the first is the default one, with the shape of each's embedding under pool avg.
        other_weights: weights that are not those of `weights`.
    """

    backbone: ClassVar[str]
    taps: ClassVar[dict[str, tuple[int, ...]]]
    other_weights: ClassVar[str] = "random:1"

    def weights(self, folder: Path) -> str:
        """Weights for `recipe.weights`: random ones, or those of a file that is written into a folder."""
        return "random:0"

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        """The network's input of one image as the library's authors prepare it, CHW."""
        raise NotImplementedError

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        """What the authors' own code makes of prepared images before the classifier, BD."""
        raise NotImplementedError

    @pytest.fixture
    def resolved(self, tmp_path: Path) -> Backbone:
        return self.resolve(tmp_path)

    def resolve(self, folder: Path, **wishes: object) -> Backbone:
        settings = {
            "backbone": self.backbone,
            "weights": wishes.get("weights") or self.weights(folder),
            "precision": Precision(compute="fp32", storage="full"),
        }
        return resolve_backbone(RecipeConfig.model_validate(settings | wishes), Path)

    def images(self, backbone: Backbone, count: int = 5) -> np.ndarray:
        images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
        return np.concatenate([images_BHWC, images_BHWC[:, ::-1]])[:count]

    def encode(self, backbone: Backbone, images_BHWC: np.ndarray, batch_size: int = 2) -> dict[str, np.ndarray]:
        return Encoder(backbone, device="cpu", batch_size=batch_size).encode(images_BHWC)

    def near(self, found: np.ndarray, expected: np.ndarray) -> None:
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    def test_it_is_found_by_its_name(self, resolved: Backbone) -> None:
        name, _, model = self.backbone.partition(":")
        library = open_library(name)
        assert name in library_names() and library.name == name
        assert full_name(self.backbone) == resolved.recipe.backbone == self.backbone
        assert library.has(model)
        if library.models():
            with pytest.raises(BackboneError, match=f"{name}:"):
                full_name(f"{name}:no-model-of-this-name")

    def test_it_gives_a_module_in_eval_mode_with_numbers_of_32_bits(self, resolved: Backbone) -> None:
        assert not resolved.module.training
        tensors = [*resolved.module.parameters(), *resolved.module.buffers()]
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} <= {torch.float32}
        assert {tensor.device.type for tensor in tensors} <= {"cpu"}

    def test_the_same_request_gives_the_same_network(self, resolved: Backbone, tmp_path: Path) -> None:
        again = self.resolve(tmp_path)
        assert again.recipe == resolved.recipe and again.shapes == resolved.shapes
        images_BHWC = self.images(resolved)
        for column, found in self.encode(again, images_BHWC).items():
            np.testing.assert_array_equal(found, self.encode(resolved, images_BHWC)[column])

    def test_it_leaves_the_callers_random_numbers_alone(self, tmp_path: Path) -> None:
        weights = self.weights(tmp_path)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        self.resolve(tmp_path, weights=weights)
        assert torch.equal(torch.get_rng_state(), before)

    def test_embeddings_are_the_authors(self, resolved: Backbone) -> None:
        images_BHWC = self.images(resolved)
        inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), resolved.recipe.preprocessing)
        self.near(self.encode(resolved, images_BHWC)["embedding"], self.embedded(inputs_BCHW, resolved))

    def test_preprocessing_is_the_authors(self, resolved: Backbone) -> None:
        """To within 2 levels of 255, which roundings of resized pixels may differ by, and a fifth of one on average."""
        preprocessing = resolved.recipe.preprocessing
        low, high = preprocessing.scale
        for index, (width, height) in enumerate(SIZES):
            image = Image.fromarray(golden_images(height, width)[index])
            pixels_BHWC = torch.tensor(apply_preprocessing(image, preprocessing))[None]
            found_CHW = to_network_input(pixels_BHWC, preprocessing)[0].numpy()
            levels = (
                (found_CHW - self.prepared(image, resolved)) * np.array(preprocessing.std)[:, None, None] * 255 / (high - low)
            )
            assert np.abs(levels).max() < 2.01 and np.abs(levels).mean() < 0.2

    def test_an_embedding_depends_on_its_image_alone(self, resolved: Backbone) -> None:
        images_BHWC = self.images(resolved)
        together = self.encode(resolved, images_BHWC)["embedding"]
        for position in (0, 3):
            alone = self.encode(resolved, images_BHWC[position : position + 1], batch_size=1)["embedding"]
            self.near(alone, together[position : position + 1])
        assert len({row.tobytes() for row in together}) == len(together)  # and images are told apart

    def test_types_and_shapes(self, resolved: Backbone) -> None:
        assert tuple(resolved.recipe.taps) == (next(iter(self.taps)),)
        for count in (0, 1, 5):
            found = self.encode(resolved, self.images(resolved, count))["embedding"]
            assert found.dtype == np.float32 and found.shape == (count, *resolved.shapes["embedding"])

    def test_taps(self, tmp_path: Path) -> None:
        backbone = self.resolve(tmp_path, taps=tuple(self.taps), pool="avg")
        columns = self.encode(backbone, self.images(backbone))
        for tap, shape in self.taps.items():
            column = backbone.recipe.columns[tap]
            assert backbone.shapes[column] == shape
            assert columns[column].shape == (5, int(np.prod(shape))) and np.isfinite(columns[column]).all()

    def test_an_unknown_tap_is_answered_with_those_that_there_are(self, tmp_path: Path) -> None:
        known = next(iter(self.taps)).partition(":")[0].partition(".")[0]
        with pytest.raises(BackboneError, match=f"no layer 'nolayer'.*{known}"):
            self.resolve(tmp_path, taps=("nolayer",))

    def test_a_new_process_loads_it_from_its_recipe(self, resolved: Backbone, tmp_path: Path) -> None:
        """A worker gets a path, never a pickled network, and computes what the table holds."""
        path = tmp_path / "recipe.json"
        path.write_bytes(make_recipe_file(resolved).to_json())
        command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == resolved.recipe.recipe_id, done.stderr
        assert "assumed" not in done.stderr  # what was assumed is said once, where the table is made

    def test_golden_vectors_are_checked(self, resolved: Backbone) -> None:
        file = make_recipe_file(resolved)
        make_encoder(file, Path, where="here")
        turned = {column: np.roll(rows, 1, axis=0).tolist() for column, rows in file.golden.items()}
        with pytest.raises(GoldenMismatchError, match="here computes other embeddings"):
            make_encoder(file.model_copy(update={"golden": turned}), Path, where="here")

    def test_other_weights_and_recipes_are_refused(self, resolved: Backbone, tmp_path: Path) -> None:
        other = self.resolve(tmp_path, weights=self.other_weights).recipe
        assert other.weights_sha256 != resolved.recipe.weights_sha256
        with pytest.raises(WeightsError, match="has the hash"):
            load_backbone(resolved.recipe.model_copy(update={"weights": other.weights}), Path)
        with pytest.raises(WeightsError, match="weights_sha256"):
            self.resolve(tmp_path, weights_sha256=other.weights_sha256)
        file = make_recipe_file(resolved)
        check_recipe(file, resolved.recipe, "table")
        for recipe in (other, replace_tap(resolved, list(self.taps)[-1])):
            with pytest.raises(RecipeMismatchError, match="table"):
                check_recipe(file, recipe, "table")

    def test_weights_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError):
            self.resolve(tmp_path, weights=str(tmp_path / "nothing.safetensors"))

    def test_what_it_names_is_what_it_loads_again(self, resolved: Backbone) -> None:
        name, _, model = self.backbone.partition(":")
        request = Request(model, resolved.recipe.weights, resolved.recipe.preprocessing.crop, is_prepared=True)
        again = open_library(name).load(request, Path)
        assert (again.backbone, again.weights) == (resolved.recipe.backbone, resolved.recipe.weights)
        assert again.weights_sha256 == resolved.recipe.weights_sha256

    def test_the_recipe_file_is_written_and_read(self, resolved: Backbone) -> None:
        file = make_recipe_file(resolved)
        assert RecipeFile.from_json(file.to_json(), "recipe.json") == file
        assert file.notes == resolved.notes


def replace_tap(backbone: Backbone, tap: str) -> object:
    return replace(backbone, recipe=backbone.recipe.model_copy(update={"taps": (tap, "another")})).recipe
