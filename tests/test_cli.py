"""What the command line says of bad input: one line, exit code 2, before any work."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from tests.photos import RECIPE, error_of, result_of, tlray, write_photos
from tlray.cli import COMMANDS, main
from tlray.config import ExtractConfig, FailureCode
from tlray.config_reader import load_config
from tlray.errors import ConfigError, ImageErrorCode


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 3)
    return folder


def test_help_needs_neither_torch_nor_ray() -> None:
    for command in ("", *COMMANDS):
        arguments = [command, "--help"] if command else ["--help"]
        heavy = {"torch", "ray", "boto3", "torchvision", "timm", "sklearn"}
        code = f"import sys; from tlray.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        code += f"print(sorted({heavy} & set(sys.modules)))"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert output.splitlines()[-1] == "[]", command
        assert "usage: tlray" in output


def test_the_failure_codes_of_flags_are_those_of_errors() -> None:
    assert typing.get_args(FailureCode) == tuple(ImageErrorCode)


def test_flags_override_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("source: {uri: s3://a/b, labels: folder}\nrecipe: {backbone: torchvision:vgg16, taps: [x, y]}\ntable: t\n")
    assert (
        main(
            [
                "extract",
                "--config",
                str(file),
                "--source.uri",
                "s3://c/d",
                "--recipe.precision.compute",
                "fp32",
                "--print-config",
            ]
        )
        == 0
    )
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["source"]["uri"] == "s3://c/d" and config["source"]["labels"] == "folder"
    assert config["recipe"]["taps"] == ["x", "y"] and config["recipe"]["precision"] == {"compute": "fp32", "storage": "half"}
    file.write_text(yaml.safe_dump(config))
    assert load_config(ExtractConfig, [], file=file, program="tlray").model_dump(mode="json") == config


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TABLE", "SOURCE__URI", "LOCAL", "table"):
        monkeypatch.setenv(name, "from-the-environment")
    with pytest.raises(ConfigError, match="table is missing"):
        load_config(ExtractConfig, ["--source.uri", "x", "--recipe.backbone", "y"], file=None, program="tlray")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], "unknown command 'frobnicate'; expected one of extract"),
        (["extract", "--recipe.bakbone", "x"], "unknown flag --recipe.bakbone; did you mean --recipe.backbone?"),
        (["extract", "--table", "t", "--recipe.backbone", "x"], "source"),
        (["extract", "--table", "t", "--source.uri", "s", "--recipe.backbone", "x", "--recipe.pool", "median"], "recipe.pool"),
        (["extract", "--config", "/nowhere.yaml"], "cannot read --config /nowhere.yaml"),
        (["show", "/nowhere/table"], "no table at file:///nowhere/table"),
    ],
)
def test_wrong_words(arguments: list[str], expected: str) -> None:
    assert expected in error_of(tlray(*arguments))


def test_unknown_keys_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("source: {uri: a, lables: folder}\nrecipe: {backbone: x}\ntable: t\n")
    assert "unknown key source.lables; did you mean source.labels?" in error_of(tlray("extract", "--config", file))
    file.write_text("- a\n")
    assert "holds list" in error_of(tlray("extract", "--config", file))
    file.write_text("a: [\n")
    assert "is not YAML" in error_of(tlray("extract", "--config", file))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--recipe.backbone": "torchvision:resnet5"}, "resnet50"),
        ({"--recipe.backbone": "resnet50"}, "torchvision:resnet50"),
        ({"--recipe.taps": "layer9"}, "layer4"),
        ({"--recipe.weights": "/nowhere.pth"}, "/nowhere.pth"),
        ({"--recipe.weights-sha256": "0" * 64}, "000000000000"),
        ({"--recipe.preprocessing": '{"interpolation": "lanczos", "antialias": false}'}, "antialias"),
        ({"--source.uri": "/nowhere/photos"}, "/nowhere/photos"),
        ({"--source.include": "*.xyz"}, "all left out"),
        ({"--source.uri": "ftp://host/x"}, "expected s3://bucket/key"),
        ({"--source.labels": "breed"}, "breed"),
        ({"--table": "gs://bucket/x"}, "expected s3://bucket/key"),
    ],
)
def test_input_that_does_not_fit(photos: Path, tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    flags = {"--source.uri": str(photos), "--table": str(tmp_path / "t"), **dict(zip(RECIPE[::2], RECIPE[1::2], strict=True))}
    arguments = [word for pair in (flags | changes).items() for word in pair]
    assert expected in error_of(tlray("extract", *arguments))
    assert not (tmp_path / "t").exists()


def test_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    message = error_of(tlray("extract", "--source.uri", tmp_path / "photos", "--table", tmp_path / "t", *RECIPE))
    assert "nothing is at file://" in message


def test_a_table_of_another_recipe(photos: Path, tmp_path: Path) -> None:
    run = ["extract", "--local", "--source.uri", photos, "--table", tmp_path / "t"]
    result_of(tlray(*run, *RECIPE))
    message = error_of(tlray(*run, *RECIPE, "--recipe.normalize"))
    assert "RecipeMismatchError" in message and "normalize: True, False" in message
    other_weights = [word.replace("random:7", "random:8") for word in RECIPE]
    assert "weights_sha256" in error_of(tlray(*run, *other_weights))


@pytest.mark.s3
def test_buckets_and_permissions(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ["extract", "--local", "--table", tmp_path / "t", *RECIPE]
    assert "no-such-bucket" in error_of(tlray(*run, "--source.uri", "s3://no-such-bucket/photos"))
    assert s3_bucket in error_of(tlray(*run, "--source.uri", f"{s3_bucket}/photos/"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "CredentialsError" in error_of(tlray(*run, "--source.uri", f"{s3_bucket}/photos/"))
