"""`tlray train` from end to end, on tables of made-up vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.factories import make_recipe_file
from tests.photos import error_of, result_of, tlray
from tests.training.held import held
from tests.training.tables import blobs, config_for, uri_of, write_table
from tlray.errors import ConfigError, ExamplesError, RecipeMismatchError, TableLockedError
from tlray.lake.table.parts import vectors_of
from tlray.lake.table.table import Table
from tlray.predictor import Output
from tlray.training.examples.examples import Split
from tlray.training.examples.splits import hash_splits
from tlray.training.model.model import load_model, read_card
from tlray.training.train import train

ROWS = 600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    features, classes = blobs(ROWS)
    write_table(tmp_path / "table", {"embedding": features}, [f"class {one}" for one in classes])
    return tmp_path


def truth(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    rows = Table.open(f"file://{folder}/table").read(["uri", "label", "embedding"]).sort_by("uri")
    return rows["uri"].to_pylist(), vectors_of(rows["embedding"]), np.array(rows["label"].to_pylist())


def test_the_best_head_is_as_good_as_scikit_learn_on_the_same_rows(folder: Path) -> None:
    result = result_of(tlray("train", "--table", folder / "table", "--out", folder / "model"))
    uris, features, labels = truth(folder)
    config = config_for(folder)
    splits = hash_splits(uris, np.unique(labels, return_inverse=True)[1], config.split, 0)
    train_rows, test = splits == Split.TRAIN, splits == Split.TEST
    oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features[train_rows], labels[train_rows])
    assert result["metrics"]["test"]["accuracy"]["value"] >= oracle.score(features[test], labels[test]) - 0.02
    model = load_model(f"file://{folder}/model")
    with torch.inference_mode():
        guess = np.array(model.card.classes)[model.head(torch.from_numpy(features)).argmax(dim=1)]
    for name, split in (("train", Split.TRAIN), ("validation", Split.VALIDATION), ("test", Split.TEST)):
        found = model.card.metrics[name]
        assert found.rows == (splits == split).sum()
        assert found.accuracy.value == pytest.approx(np.mean(guess[splits == split] == labels[splits == split]))
    assert model.recipe_file.recipe_id == model.card.recipe_id == result["recipe_id"]
    assert model.card.tap == "avgpool"
    assert len(model.card.training["grid"]) == result["heads"] == 15
    losses = [row["validation_loss"] for row in model.card.training["grid"]]
    assert losses[1:] == sorted(losses[1:]) and result["best"] == model.card.training["grid"][0]
    for name in ("curves.png", "confusion.png"):
        with Image.open(folder / "model" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


@pytest.mark.parametrize(
    "changes",
    [
        {"head": {"kind": "ridge"}},
        {"head": {"kind": "mlp", "hidden": [16]}, "epochs": 20, "batch_size": 32},
        {"head": {"solver": "adamw"}, "grid": {"learning_rates": [0.03]}, "epochs": 15, "memory_bytes": 20_000},
        {"refit": True, "class_weights": "balanced", "split": {"test": 0.3, "group_duplicates": 0.9999}},
    ],
)
def test_other_heads_learn_too_and_a_dry_run_tells_of_them(folder: Path, changes: dict) -> None:
    dry = train(config_for(folder, dry_run=True, **changes))
    assert not (folder / "model").exists()
    result = train(config_for(folder, **changes))
    assert result["metrics"]["test"]["accuracy"]["value"] > 0.85
    assert dry["heads"] == result["heads"] and dry["in_memory"] == ("memory_bytes" not in changes)
    assert dry["rows"]["test"] == result["metrics"]["test"]["rows"]
    assert dry["solvers"] == [result["best"]["solver"]]


def test_streamed_ridge_is_ridge_in_memory(folder: Path) -> None:
    features = torch.randn(5, 16)
    scores = []
    for name, memory_bytes in (("a", 10**9), ("b", 20_000)):
        train(config_for(folder, out=str(folder / name), head={"kind": "ridge"}, memory_bytes=memory_bytes))
        scores.append(load_model(f"file://{folder}/{name}").head(features))
    assert torch.allclose(*scores, atol=1e-4)


def test_the_best_column_of_several_is_found(tmp_path: Path) -> None:
    good, classes = blobs(ROWS)
    bad, _ = blobs(ROWS, seed=1)
    write_table(tmp_path / "table", {"early": bad, "late.1": good}, classes)
    with pytest.raises(ConfigError, match=r"has 2 embedding columns: embedding_early, embedding_late_1; name one"):
        train(config_for(tmp_path))
    result = train(config_for(tmp_path, grid={"columns": ["embedding_early", "embedding_late_1"]}))
    assert result["best"]["column"] == "embedding_late_1" and result["heads"] == 30
    assert read_card(f"file://{tmp_path}/model").tap == "late.1"


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    features, classes = blobs(ROWS)
    write_table(tmp_path / "table", {"embedding": features}, classes)
    lines = ["uri,labels,x,y"]
    for number, (one, row) in enumerate(zip(classes, features, strict=True)):
        names = [name for name, applies in (("even", one % 2 == 0), ("small", one < 2)) if applies]
        lines.append(f"{uri_of(number, one)},{'|'.join(names)},{row[-1] / 10},{row[0] - row[-1]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    common = {"labels": str(tmp_path / "labels.csv")}
    multi = train(
        config_for(tmp_path, out=str(tmp_path / "a"), task="multi", label_columns=["labels"], separator="|", **common)
    )
    assert multi["metrics"]["test"]["mean_average_precision"]["value"] > 0.85 and multi["outputs"] == 2
    for kind in ("linear", "ridge"):
        changes = {"task": "regression", "label_columns": ["x", "y"], "head": {"kind": kind}}
        numbers = train(config_for(tmp_path, out=str(tmp_path / kind), **changes, **common))
        assert numbers["metrics"]["test"]["r2"]["value"] > 0.999


def test_the_same_command_again_does_nothing_until_something_changes(folder: Path) -> None:
    first = train(config_for(folder))
    again = train(config_for(folder, memory_bytes=10**9))
    assert again["action"] == "unchanged" and again | {"seconds": 0, "action": ""} == first | {"seconds": 0, "action": ""}
    with pytest.raises(ConfigError, match=r"model of another config \(it differs in epochs, split.test\)"):
        train(config_for(folder, epochs=5, split={"test": 0.2}))
    with held(folder / "model", "train"), pytest.raises(TableLockedError, match=r"run train .* alive"):
        train(config_for(folder, epochs=5, rebuild=True))
    assert train(config_for(folder, epochs=5, rebuild=True))["action"] == "retrained"
    features, classes = blobs(100, seed=8)
    uris = [f"s3://new/{number}.jpg" for number in range(100)]
    write_table(folder / "table", {"embedding": features}, [f"class {one}" for one in classes], uris=uris)
    newer = train(config_for(folder, epochs=5))
    assert newer["action"] == "retrained" and newer["table_version"] == 2
    assert newer["counts"]["images"] == 100


def test_a_model_of_another_recipe_is_not_replaced(folder: Path) -> None:
    train(config_for(folder))
    features, classes = blobs(60, dimensions=8)
    write_table(folder / "other", {"x": features, "y": features}, classes)
    with pytest.raises(RecipeMismatchError, match=r"began with recipe .* taps: .*--rebuild"):
        train(config_for(folder, table=str(folder / "other"), grid={"columns": ["embedding_x"]}))


def test_training_is_the_same_each_time(folder: Path) -> None:
    for name in ("a", "b"):
        train(config_for(folder, out=str(folder / name), head={"kind": "mlp", "hidden": [8], "dropout": 0.2}, epochs=3))
    one, two = (read_card(f"file://{folder}/{name}") for name in ("a", "b"))
    assert one.files["head.safetensors"] == two.files["head.safetensors"] and one.metrics == two.metrics


def test_curves_go_to_tensorboard(folder: Path) -> None:
    pytest.importorskip("tensorboardX")
    train(config_for(folder, loggers=["tensorboard"], logs=str(folder / "logs")))
    assert list((folder / "logs").glob("events.*"))


def test_curves_go_to_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{folder}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    result = train(config_for(folder, loggers=["mlflow"]))
    client = mlflow.tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tlray").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["heads"] == "15"
    curve = client.get_metric_history(run.info.run_id, "embedding/validation/loss")
    assert curve[-1].value == pytest.approx(result["best"]["validation_loss"])


def test_a_logger_whose_package_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match="needs the package mlflow"):
        train(config_for(folder, loggers=["mlflow"]))


def test_no_matplotlib_no_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    train(config_for(folder))
    assert set(read_card(f"file://{folder}/model").files) == {"head.safetensors", "recipe.json"}


def test_what_is_wrong_is_one_line_and_code_2(folder: Path) -> None:
    for arguments, message in (
        (["--table", folder / "nowhere"], "no table at"),
        (["--table", folder / "table", "--grid.columns", "x"], "has no columns x; its embedding columns are embedding"),
        ([], "table is missing"),
        (["--table", folder / "table", "--out", folder / "model.pt"], "a model is a folder; name one, such as"),
        (["--table", folder / "table", "--labels", folder / "none.csv"], "none.csv"),
        (["--table", folder / "table", "--head.hidden", "8"], "give --head.kind mlp"),
    ):
        out = [] if "--out" in arguments else ["--out", folder / "model"]
        outcome = tlray("train", *out, *arguments)
        assert outcome.returncode == 2 and message in error_of(outcome), outcome.stderr


def test_a_table_of_predictions_alone_is_refused(tmp_path: Path) -> None:
    output = Output(model="m", column="embedding", task="single", classes=("a", "b"), top_k=1, threshold=0.5)
    Table.create(f"file://{tmp_path}/table", make_recipe_file().model_copy(update={"output": output}))
    for columns in ((), ("embedding",)):
        with pytest.raises(ConfigError, match=r"holds predictions without embeddings; .*`tlray predict --embeddings`"):
            train(config_for(tmp_path, grid={"columns": columns}))


def test_vectors_that_are_not_numbers_end_the_training(tmp_path: Path) -> None:
    features, classes = blobs(100)
    features[7, 3] = np.nan
    write_table(tmp_path / "table", {"embedding": features}, classes)
    with pytest.raises(ExamplesError, match="vectors of 1 images are not finite: s3://photos/"):
        train(config_for(tmp_path))
    assert not (tmp_path / "model").exists()


def test_the_result_is_json_that_says_all(folder: Path) -> None:
    outcome = tlray("train", "--table", folder / "table", "--out", folder / "model", "--config", folder / "none.yaml")
    assert outcome.returncode == 2
    (folder / "job.yaml").write_text(json.dumps({"table": str(folder / "table"), "out": str(folder / "model")}))
    result = result_of(tlray("train", "--config", folder / "job.yaml"))
    assert {"model", "action", "best", "metrics", "seconds", "counts", "heads", "knn"} <= set(result)
    assert set(result["metrics"]["test"]["accuracy"]) == {"value", "low", "high"}
