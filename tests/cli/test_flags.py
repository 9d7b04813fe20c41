"""Flags: every key has one, values are literal text, words stand for keys, and nothing is lost without a word."""

from typing import Any

import pytest

from tlray.cli.flags import flags_of, parse
from tlray.commands import COMMANDS
from tlray.config.keys import Key, keys_of
from tlray.config_reader import read_config, to_yaml
from tlray.errors import ConfigError

KEYS = [(name, key) for name, command in COMMANDS.items() for key in keys_of(command.config).values()]
LISTS_OF_TEXT = [(name, key) for name, key in KEYS if key.is_list and not key.choices and "number" not in key.words]
ODD_TEXTS = [
    "a,b",
    "Person, sitting",
    "[x]",
    "[1, 2]",
    "null",
    "None",
    '"q"',
    "it's",
    "{j}",
    '{"a": 1}',
    "a b",
    "",
    "#x",
    "true",
    "1",
    "é\u2028",
    "@file",
    "a=b",
    "~",
]

PROMISED = {
    "extract": {
        "backbone": "recipe.backbone",
        "weights": "recipe.weights",
        "taps": "recipe.taps",
        "pool": "recipe.pool",
        "normalize": "recipe.normalize",
        "compute": "recipe.precision.compute",
        "storage": "recipe.precision.storage",
        "resize": "recipe.preprocessing.resize",
        "crop": "recipe.preprocessing.crop",
        "labels": "source.labels",
        "include": "source.include",
        "exclude": "source.exclude",
        "format": "source.format",
        "listing": "source.listing",
    },
    "predict": {"backbone": "recipe.backbone", "weights": "recipe.weights", "include": "source.include"},
    "train": {"backbone": "recipe.backbone", "weights": "recipe.weights", "freeze": "network.freeze", "hidden": "head.hidden"},
}
"""Short spellings that commands in the world rely on: a new key that ends in the same word would take them away."""


def given(name: str, *arguments: str) -> dict[str, Any]:
    """Values by key of a command line."""
    return parse(name, COMMANDS[name], arguments).given


def sample(key: Key) -> list[str]:
    """Words that are a right value of a key."""
    if key.choices:
        return [key.choices[0]]
    if "three" in key.words:
        return ["0.25", "0.5", "0.75"]
    return ["1"] if "number" in key.words else ["some text"]


@pytest.mark.parametrize(("name", "key"), KEYS, ids=lambda each: getattr(each, "name", each))
def test_every_key_has_a_flag(name: str, key: Key) -> None:
    for flag in flags_of(COMMANDS[name])[key.name]:
        if key.is_switch:
            assert given(name, flag) == {key.name: True}
            assert given(name, flag.replace("--", "--no-", 1)) == {key.name: False}
            continue
        words = sample(key)
        assert given(name, flag, *words) == {key.name: words if key.is_list else words[0]}
        with_underscores = f"--{flag[2:].replace('-', '_')}" if flag.startswith("--") else flag
        assert given(name, f"{with_underscores}={words[0]}") == {key.name: words[:1] if key.is_list else words[0]}


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize(("name", "key"), LISTS_OF_TEXT, ids=lambda each: getattr(each, "name", each))
def test_values_of_lists_are_literal_text(name: str, key: Key, text: str) -> None:
    for flag in flags_of(COMMANDS[name])[key.name]:
        assert given(name, flag, text) == {key.name: [text]}
        assert given(name, flag, text, flag, text, "x") == {key.name: [text, text, "x"]}
        assert given(name, f"{flag}={text}", f"{flag}=-{text}") == {key.name: [text, f"-{text}"]}


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_reach_the_config_and_survive_yaml(text: str, tmp_path: Any) -> None:
    command = COMMANDS["search"]
    config = read_config(command.config, given("search", "i", "--label", text, "--prefix", text, "a,b", "--out", f"o{text}"))
    assert config.model_dump()["label"] == (text,)
    assert config.model_dump()["prefix"] == (text, "a,b")
    (tmp_path / "job.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(command.config, {}, file=tmp_path / "job.yaml") == config


def test_words_stand_for_the_keys_that_every_run_needs() -> None:
    expected = {"source.uri": "photos", "table": "t", "recipe.backbone": "resnet50"}
    assert given("extract", "photos", "t", "--backbone", "resnet50") == expected
    assert given("extract", "--backbone", "resnet50", "photos", "t") == expected
    assert given("extract", "photos", "--backbone", "resnet50", "t") == expected
    assert given("show", "t") == {"table": "t"}
    assert given("alias", "a", "t", "--if-version", "3") == {"alias": "a", "table": "t", "if_version": "3"}
    # A list takes the words after it, as a shell's glob would have it.
    assert given("search", "i", "--image", "a.jpg", "b.jpg", "-k", "3") == {"index": "i", "image": ["a.jpg", "b.jpg"], "k": "3"}
    with pytest.raises(ConfigError, match=r"source.uri, recipe.backbone and table are missing"):
        read_config(COMMANDS["extract"].config, given("extract", "--include", "*.jpg", "photos", "t"))


def test_words_are_keys_of_their_commands() -> None:
    for command in COMMANDS.values():
        assert set(command.words) | set(command.common) <= set(keys_of(command.config))
        assert len(set(command.words + command.common)) == len(command.words + command.common)


@pytest.mark.parametrize("name", PROMISED)
def test_promised_short_spellings(name: str) -> None:
    flags = flags_of(COMMANDS[name])
    for short, key in PROMISED[name].items():
        assert f"--{short}" in flags[key]


def test_files_take_the_same_spellings_as_flags(tmp_path: Any) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("source.uri: photos\nbackbone: resnet50\nrecipe: {precision.compute: fp32, pool: max}\ntable: t\n")
    config = read_config(COMMANDS["extract"].config, {"pool": "gem", "preprocessing": {"crop": 96}}, file=file).model_dump()
    assert config["source"]["uri"] == "photos" and config["table"] == "t"
    assert config["recipe"]["backbone"] == "resnet50" and config["recipe"]["pool"] == "gem"
    assert config["recipe"]["precision"]["compute"] == "fp32"
