"""Advice end to end, as a user gets it: on classes that can be told, and its command carried out."""

import json
import shlex
from pathlib import Path

import pytest

import tlray as tlray_api
from tests.advice.pictures import CANDIDATES, SIZE, write_stripes
from tests.cli.test_summary import on_a_terminal
from tests.photos import result_of, tlray
from tlray.advice.inputs.candidates import find_candidates
from tlray.advice.measuring.trials import Attempt
from tlray.advice.verdict.commands import network_commands
from tlray.cli.flags import parse
from tlray.commands import COMMANDS
from tlray.config import AdviseConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `stripes` of three classes, a near-copy of one of its images, and one that is in the wrong class."""
    folder = tmp_path_factory.mktemp("advice")
    write_stripes(folder / "stripes", 30)
    first, second = folder / "stripes" / "kind-0", folder / "stripes" / "kind-1"
    (first / "copy.png").write_bytes((first / "000.png").read_bytes())
    write_stripes(folder / "others", 31, seed=5)
    (folder / "others" / "kind-2" / "030.png").rename(second / "wrong.png")
    return folder


def arguments(folder: Path, *more: str | Path) -> list[str | Path]:
    some = ["advise", folder / "stripes", "--candidates", *CANDIDATES, "--resize", "32", "--crop", "32"]
    return [*some, "--layers", "2", "--epochs", "2", "--minutes", "30", *more]


@pytest.fixture(scope="module")
def advice(folder: Path) -> dict:
    return result_of(tlray(*arguments(folder, "--out", folder / "advice.json")))


def test_what_can_be_told_is_recommended_with_its_command(folder: Path, advice: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice["verdict"] in ("recommended", "cannot tell")
    best = advice["recommendation"]
    assert best["expected_accuracy"]["value"] > 0.85 > advice["floors"]["majority"]["high"]
    for strategy in advice["strategies"]:
        for command in strategy["commands"]:
            program, name, *words = shlex.split(command)
            assert program == "tlray"
            parse(name, COMMANDS[name], words)
    monkeypatch.chdir(folder)
    head = next(one for one in advice["strategies"] if one["strategy"] == "head")
    for command in head["commands"]:
        result = result_of(tlray(*shlex.split(command)[1:], *(["--local"] if " extract " in command else [])))
    assert result["metrics"]["test"]["accuracy"]["high"] >= head["expected_accuracy"]["low"]


def test_the_command_of_a_network_is_carried_out(folder: Path, advice: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of a few steps bring a network from scratch nowhere near the head; advice says so, or gives its trial up."""
    tried = [one for one in (*advice["strategies"], *advice["not_tried"]) if one["strategy"] != "head"]
    assert [one["strategy"] for one in tried] == ["scratch"] and advice["recommendation"]["strategy"] == "head"
    assert "given up: after 1 of 2 epochs it is right in" in tried[0].get("reason", "") or tried[0]["measured_accuracy"] < 0.9
    monkeypatch.chdir(folder)
    asked = {"source": {"uri": "stripes"}, "candidates": CANDIDATES, "preprocessing": SIZE, "labels": "folder", "epochs": 2}
    config = AdviseConfig.model_validate(asked)
    (command,) = network_commands(config, Attempt("scratch", find_candidates(config)[0][0]))
    result = result_of(tlray(*shlex.split(command)[1:]))
    assert result["epochs"] == 2 and result["outputs"] == 3


def test_what_is_odd_about_the_data_is_found(advice: dict) -> None:
    copies, suspects = advice["data"]["near_duplicates"], advice["data"]["suspected_labels"]
    assert copies["groups"] == 1 and copies["images"] == 2 and copies["across_splits"] is None
    assert {one["uri"].rsplit("/", 1)[1] for one in copies["examples"][0]} == {"000.png", "copy.png"}
    assert any(one["uri"].endswith("wrong.png") and one["suggested"] == "kind-2" for one in suspects["examples"])
    assert advice["data"]["class_sizes"] == {"kind-0": 31, "kind-1": 31, "kind-2": 30}


def test_every_candidate_has_its_layers_and_scores(advice: dict) -> None:
    assert {one["candidate"] for one in advice["candidates"]} == set(CANDIDATES)
    for one in advice["candidates"]:
        assert [layer["depth"] for layer in one["layers"]][-1] == 1 and len(one["layers"]) == 2
        assert one["leep"] is None  # random weights have no classifier
        for layer in one["layers"]:
            assert 0 <= layer["knn"]["low"] <= layer["knn"]["value"] <= layer["knn"]["high"] <= 1
    assert advice["likeness"]["value"] is None and advice["scenario"]["corner"] is None
    assert [point["labels_per_class"] for point in advice["learning_curve"]] == [5, 11, 23]


def test_the_file_and_the_summary(folder: Path, advice: dict) -> None:
    assert json.loads((folder / "advice.json").read_text()) == advice
    said, _ = on_a_terminal(*arguments(folder, "--no-trials", "--images", "60"))
    lines = said.splitlines()
    assert lines[-2].startswith("  tlray extract ") and lines[-1].startswith("  tlray train ")
    assert any("raw pixels" in line for line in lines) and any("trials is false" in line for line in lines)


def test_a_dry_run_says_what_it_would_cost(folder: Path) -> None:
    plan = result_of(tlray(*arguments(folder, "--dry-run")))
    assert plan["dry_run"] and set(plan["estimate"]["per_image"]) == set(CANDIDATES)
    assert plan["estimate"]["seconds"] > 0 and "candidates" not in plan


def test_python_gives_the_same(folder: Path) -> None:
    result = tlray_api.advise(
        folder / "stripes", candidates=CANDIDATES[:1], resize=32, crop=32, layers=1, trials=False, minutes=30, images=40
    )
    typed = [name for kind in type(result).__mro__ for name in getattr(kind, "__annotations__", {})]
    assert typed and set(typed) <= set(result.to_dict())
    assert result.recommendation["commands"][0].startswith("tlray extract ") and "AdviseResult" in repr(result)
    report = tlray_api.report(folder / "advice.json", folder / "advice.html")
    assert (report.of, report.size_bytes) == ("advice", (folder / "advice.html").stat().st_size)
