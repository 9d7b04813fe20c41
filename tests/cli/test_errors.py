"""What the command line says of bad input: one line, exit code 2, before any work."""

import sys
import typing
from pathlib import Path

import pytest
import yaml

from tests.photos import RECIPE, error_of, result_of, tlray, write_photos
from tlray.cli import main
from tlray.config import ExtractConfig, FailureCode
from tlray.config_reader import read_config
from tlray.errors import ConfigError, ImageErrorCode
from tlray.lake.storage.open import open_store


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 3)
    return folder


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
    assert read_config(ExtractConfig, {}, file=file).model_dump(mode="json") == config


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TABLE", "SOURCE__URI", "LOCAL", "table"):
        monkeypatch.setenv(name, "from-the-environment")
    with pytest.raises(ConfigError, match="table is missing"):
        read_config(ExtractConfig, {"source.uri": "x", "recipe.backbone": "y"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], "unknown command 'frobnicate'; `tlray help` lists the commands: extract"),
        (["extrct"], "did you mean `tlray extract"),
        (["embed", "photos"], "did you mean `tlray extract"),
        (["query"], "did you mean `tlray search"),
        (["--table", "t"], "a command comes first"),
        (["help", "extrct"], "did you mean `tlray extract"),
        (["extract", "--recipe.bakbone", "x"], "unknown flag --recipe.bakbone; did you mean --recipe.backbone?"),
        (
            ["extract"],
            "and table are missing; give them as --source.uri, --recipe.backbone and --table",
        ),
        (["extract", "photos", "--backbone", "x"], "table is missing; give it as --table, or in the config file"),
        (["extract", "photos"], "usage: tlray extract SOURCE TABLE --backbone TEXT (SOURCE is --source.uri, TABLE is --table)"),
        (["extract", "--source", "photos", "--table", "t"], "source is a section: did you mean --source.uri?"),
        (["extract", "photos", "t", "--recipe", "x"], "recipe is a section: did you mean --recipe.backbone?"),
        (["extract", "photos", "t", "--frobnicate"], "unknown flag --frobnicate; `tlray extract --help-all` lists the flags"),
        (["extract", "photos", "t", "more"], "a word too many: 'more'"),
        (["extract", "photos", "t", "--local", "true"], "--local takes no value, given 'true'; --no-local says no"),
        (["extract", "photos", "t", "--local=true"], "--local: takes no value; --no-local says no"),
        (["extract", "photos", "t", "--local", "--no-local"], "both it and its opposite are given"),
        (["extract", "photos", "--source.uri", "other"], "source.uri is given twice: 'photos' (as SOURCE) and 'other'"),
        (["extract", "--table", "t", "--table", "u"], "given twice, 't' and 'u'"),
        (["extract", "photos", "t", "--backbone"], "--recipe.backbone: expected one argument"),
        (["extract", "photos", "t", "--backbone", "-x"], "a value that begins with - is written --recipe.backbone=-VALUE"),
        (["extract", "photos", "t", "--backbone", "x", "--mean", "0.1307"], "mean: expected three numbers, given ['0.1307']"),
        (
            ["extract", "photos", "t", "--backbone", "x", "--crop", "1", "2", "3"],
            "crop: expected a whole number or two whole numbers",
        ),
        (["extract", "photos", "t", "--backbone", "x", "--max-failed-fraction", "x"], "expected a number, given 'x'"),
        (
            ["extract", "photos", "t", "--backbone", "x", "--max-failed-fraction", "2"],
            "expected a number less than or equal to 1",
        ),
        (
            ["extract", "photos", "t", "--backbone", "x", "--pool", "avrg"],
            "pool: expected one of avg, max, gem, cls, flatten, none, sif, given 'avrg'; did you mean avg?",
        ),
        (["search", "--table", "t", "--image", "x.png"], "usage: tlray search INDEX (INDEX is --index)"),
        (["train", "t", "m", "--column", "x"], ": name it in full"),
        (["train", "t", "m", "--split.test", "0.9"], "split: validation 0.15 and test 0.9 leave nothing to train on"),
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
    file.write_text("source: photos\nbackbone: resnet50\ntable: t\n")
    assert "source: expected a section with keys such as source.uri, given 'photos'" in error_of(
        tlray("extract", "--config", file)
    )
    file.write_text("source.uri: a\nbackbone: 5\ntable: t\n")
    assert "recipe.backbone: expected text, given 5; write it in quotes" in error_of(tlray("extract", "--config", file))
    file.write_text("recipe: {backbone: a}\nbackbone: b\n")
    assert "recipe.backbone is given twice: 'a' and 'b'" in error_of(tlray("extract", "--config", file))
    file.write_text("- a\n")
    assert "holds list" in error_of(tlray("extract", "--config", file))
    file.write_text("sorce: {uri: a}\nrecipe: {backbone: x}\ntable: t\n")
    said = error_of(tlray("extract", "--config", file))
    assert "ConfigError: unknown key sorce; source is a section: did you mean source.uri?; source.uri is missing" in said
    file.write_text("a: [\n")
    assert "is not YAML: line 2, column 1: expected the node content" in error_of(tlray("extract", "--config", file))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--recipe.backbone": "torchvision:resnet5"}, "resnet50"),
        ({"--recipe.taps": "layer9"}, "layer4"),
        ({"--recipe.weights": "/nowhere.pth"}, "/nowhere.pth"),
        ({"--recipe.weights-sha256": "0" * 64}, "000000000000"),
        ({"--recipe.preprocessing.interpolation": "lanczos", "--no-antialias": None}, "antialias"),
        ({"--source.uri": "/nowhere/photos"}, "/nowhere/photos"),
        ({"--source.include": "*.xyz"}, "match no pattern of source.include"),
        ({"--source.uri": "ftp://host/x"}, "expected s3://bucket/key"),
        (
            {"--source.uri": "s3:/bucket/x"},
            "'s3:/bucket/x' has one slash after its scheme; expected s3://bucket/x, or ./s3:/bucket/x",
        ),
        ({"--table": "s3:/bucket/t"}, "expected s3://bucket/t"),
        ({"--recipe.backbone": "google/vit-base-patch16-224"}, "is hf:google/vit-base-patch16-224"),
        ({"--source.labels": "breed"}, "breed"),
        ({"--table": "gs://bucket/x"}, "expected s3://bucket/key"),
    ],
)
def test_input_that_does_not_fit(photos: Path, tmp_path: Path, changes: dict[str, str | None], expected: str) -> None:
    flags = {"--source.uri": str(photos), "--table": str(tmp_path / "t"), **dict(zip(RECIPE[::2], RECIPE[1::2], strict=True))}
    arguments = [word for pair in (flags | changes).items() for word in pair if word is not None]
    assert expected in error_of(tlray("extract", *arguments))
    assert not (tmp_path / "t").exists()


def test_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    message = error_of(tlray("extract", "--source.uri", tmp_path / "photos", "--table", tmp_path / "t", *RECIPE))
    assert "nothing is at file://" in message and "a folder (a prefix) with files in it" in message


def test_a_file_and_a_folder_of_photos_in_place_of_what_tlray_makes(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file, neither a table nor an alias of one" in error_of(tlray("show", tmp_path / "notes.txt"))
    said = error_of(tlray("predict", photos, tmp_path / "p", "--model", photos))
    assert f"no model at file://{photos}, which holds " in said and "objects that are not tlray's" in said


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


def test_a_command_without_its_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("uvicorn", "fastapi"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    said = error_of(tlray("serve", "/nowhere", "--port", "0"))
    assert "pip install fastapi uvicorn; or install tlray with its extra [serve]" in said


@pytest.mark.s3
def test_the_config_may_be_an_object_of_a_store(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"{s3_bucket}/jobs/job.yaml"
    open_store(uri).write(uri, b"source: {uri: photos}\nbackbone: resnet18\ntable: t\n")
    printed = tlray("extract", "--config", uri, "--pool", "max", "--print-config").stdout
    config = yaml.safe_load(printed)
    assert (config["source"]["uri"], config["recipe"]["pool"], config["table"]) == ("photos", "max", "t")
    assert "cannot read --config" in error_of(tlray("extract", "--config", f"{s3_bucket}/jobs/other.yaml"))
