"""What the documents say is what the code does: keys, commands, snippets, tables, links, manifests."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel

from tests.photos import RECIPE, result_of, tlray, write_photos
from tlray import config as configs
from tlray.cli import COMMANDS
from tlray.cli.flags import parse
from tlray.config import ExtractConfig
from tlray.config_reader import read_config
from tlray.errors import ImageErrorCode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md"]


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """Cells of the README's table whose first heading is the given one, without the heading."""
    lines = README.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a config model, and their defaults as JSON; `required` where there is none."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, "required" if field.is_required() else json.dumps(field.default)


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every `tlray` line in a document's shell blocks."""
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in joined.splitlines() if line.startswith("tlray ")]


def test_the_readme_explains_every_key_of_extract_with_its_default() -> None:
    documented = {names(key)[0]: default.strip("`") for key, default, _ in rows("key of `tlray extract`")}
    assert documented == dict(leaves(ExtractConfig))


def test_the_readme_explains_every_key_of_the_other_commands() -> None:
    """A section that extract's table explains key by key stands as `source.*`, in the other commands."""
    documented = {names(command)[0]: names(keys) for command, keys, _ in rows("command")}
    models = {name: command.config for name, command in COMMANDS.items() if command.config is not ExtractConfig}
    known = re.compile(r"^(source|recipe|policy)\..*")
    expected = {name: [known.sub(r"\1.*", key) for key, _ in leaves(model)] for name, model in models.items()}
    assert documented == {name: list(dict.fromkeys(keys)) for name, keys in expected.items()}


def test_the_readme_explains_every_key_of_a_network() -> None:
    documented = [name.removeprefix("network.") for key, *_ in rows("key of `network`") for name in names(key)]
    assert sorted(documented) == sorted(configs.NetworkConfig.model_fields)


def test_no_config_model_is_left_out() -> None:
    public = {name for name, value in vars(configs).items() if isinstance(value, type) and name.endswith("Config")}
    sections = {"RunConfig", "SourceConfig", "RecipeConfig", "PreprocessingConfig", "PolicyConfig"}
    sections |= {"SplitConfig", "HeadConfig", "GridConfig", "NetworkConfig"}
    assert public - sections == {command.config.__name__ for command in COMMANDS.values()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_command_lines_are_understood(document: str, tmp_path: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    file = tmp_path / "job.yaml"
    file.write_text("\n".join(blocks(README, "yaml")))
    lines = command_lines(text)
    for line in lines:
        typed = parse(line[0], COMMANDS[line[0]], line[1:])
        read_config(COMMANDS[line[0]].config, typed.given, file=file if typed.config == "job.yaml" else None)
    if document == "README.md":
        assert {line[0] for line in lines} == set(COMMANDS)


def test_the_example_config_is_read() -> None:
    (example,) = blocks(README, "yaml")
    config = ExtractConfig.model_validate(yaml.safe_load(example))
    assert config.source.labels == "folder"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {("", Requirement(text).name) for text in project["dependencies"]}
    for extra, texts in project["optional-dependencies"].items():
        declared |= {(extra, Requirement(text).name) for text in texts}
    explained = {(extra.strip("`"), name) for packages, extra, _ in rows("package") for name in names(packages)}
    assert explained == declared


def test_every_error_code_is_explained() -> None:
    assert [names(code)[0] for code, _, _ in rows("code")] == [str(code) for code in ImageErrorCode]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's table `photos-resnet50`, and what `extract` answered."""
    folder = tmp_path_factory.mktemp("docs")
    write_photos(folder / "photos", 6)
    (folder / "photos" / "bad.jpg").write_bytes(b"")
    arguments = ["extract", "--local", "--source.uri", folder / "photos", "--source.labels", "folder", *RECIPE]
    arguments += ["--max-failed-fraction", "0.5"]
    table = folder / "photos-resnet50"
    dry = result_of(tlray(*arguments, "--table", table, "--dry-run"))
    (folder / "result.json").write_text(json.dumps([result_of(tlray(*arguments, "--table", table)), dry]))
    return folder


def test_the_result_is_what_the_readme_says(folder: Path) -> None:
    result, dry = json.loads((folder / "result.json").read_text())
    documented = {name for keys, _ in rows("key") for name in names(keys)}
    assert documented == set(result)
    (sentence,) = re.findall(r"^A dry run has (.*)$", README, re.MULTILINE)
    assert set(names(sentence)) == set(dry) - set(result)
    stages = names(next(meaning for key, meaning in rows("key") if key == "`bottleneck`"))
    assert result["bottleneck"] in stages


def test_the_files_and_columns_are_what_the_readme_says(folder: Path) -> None:
    table = folder / "photos-resnet50"
    parts = list(table.rglob("*.parquet"))
    pattern = r"status=(ok|failed)/\d{8}T\d{6}-[0-9a-f]{8}-\d+-\d+-[0-9a-f]{64}\.parquet"
    assert len(parts) == 2 and all(re.fullmatch(pattern, path.relative_to(table).as_posix()) for path in parts)
    assert (table / "recipe.json").exists() and (table / "_delta_log" / "00000000000000000001.json").exists()
    documented = [names(column)[0] for column, _, _ in rows("column")]
    assert documented == [*pq.read_schema(parts[0]).names, "status"]


SNIPPET_CHECK = """
if "duckdb" in dir():
    print(duckdb.sql("select count(*) from rows where status = 'ok'").fetchall()[0][0])
else:
    print(len(frame if "frame" in dir() else features))
"""
"""Prints how many good rows a snippet saw, by whatever name it has them."""


@pytest.mark.parametrize("snippet", blocks(README, "python"), ids=lambda code: code.split()[1])
def test_snippets_run_and_see_the_good_rows(folder: Path, snippet: str) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", snippet + SNIPPET_CHECK],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "6"


@pytest.mark.parametrize("path", [*DOCUMENTS, "requirements.txt", "pyproject.toml", "Makefile", "cluster/Dockerfile"])
def test_no_file_names_where_packages_are_downloaded(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8").lower()
    assert not re.search(r"https?://[^\s)]*(pypi|simple/|registry|mirror)|--(extra-)?index-url|--find-links", text)
