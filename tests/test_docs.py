"""What the documents say is what the code does: keys, commands, snippets, tables, links; and the site is built of them."""

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from packaging.requirements import Requirement

from tests.photos import RECIPE, photo, result_of, tlray, write_photos
from tlray import config as configs
from tlray.cli.flags import flags_of, parse
from tlray.commands import COMMANDS
from tlray.config import ExtractConfig
from tlray.config.keys import keys_of
from tlray.config_reader import read_config
from tlray.errors import ImageErrorCode

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md", *PAGES]
README_LINES = 150
JOB = "docs/guides/configuration.md"
"""The page whose YAML block is the `job.yaml` of the others."""


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(document: str, heading: str) -> list[list[str]]:
    """Cells of the document's table whose first heading is the given one, without the heading."""
    lines = read(document).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every `tlray` line in a document's shell blocks."""
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in joined.splitlines() if line.startswith("tlray ")]


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) < README_LINES


def test_the_reference_has_every_key_of_every_command() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "reference" / "generate.py"), run_name="generate")["page"]()
    for name, command in COMMANDS.items():
        section = re.search(rf"^## tlray {name}$(.*?)(^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None
        assert re.findall(r"^\| `([^`]+)`", section[1], re.MULTILINE) == list(keys_of(command.config))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_says_what_it_means(name: str) -> None:
    assert [key.name for key in keys_of(COMMANDS[name].config).values() if not key.description] == []


def test_the_guide_explains_every_key_of_a_network() -> None:
    documented = [
        name.removeprefix("network.") for key, *_ in rows("docs/guides/networks.md", "key of `network`") for name in names(key)
    ]
    assert sorted(documented) == sorted(configs.NetworkConfig.model_fields)


def test_no_config_model_is_left_out() -> None:
    public = {name for name, value in vars(configs).items() if isinstance(value, type) and name.endswith("Config")}
    sections = {"RunConfig", "SourceConfig", "RecipeConfig", "PreprocessingConfig", "TokensConfig", "PolicyConfig"}
    sections |= {"SplitConfig", "HeadConfig", "GridConfig", "NetworkConfig", "ExamplesConfig", "FitConfig"}
    assert public - sections == {command.config.__name__ for command in COMMANDS.values()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_command_lines_are_understood(document: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("\n".join(blocks(read(JOB), "yaml")))
    for line in command_lines(read(document)):
        typed = parse(line[0], COMMANDS[line[0]], line[1:])
        read_config(COMMANDS[line[0]].config, typed.given, file=file if typed.config == "job.yaml" else None)


def test_every_command_is_shown_somewhere() -> None:
    assert {line[0] for document in DOCUMENTS for line in command_lines(read(document))} == set(COMMANDS)


@pytest.mark.parametrize("document", ["README.md", *(page for page in PAGES if page != "docs/benchmarks.md")])
def test_flags_that_the_text_names_are_there(document: str) -> None:
    flags = {flag for command in COMMANDS.values() for every in flags_of(command).values() for flag in every}
    flags |= {flag.replace("--", "--no-", 1) for flag in flags} | OTHER_FLAGS
    text = re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)
    named = {
        flag
        for code in names(text)
        if not code.startswith(OTHER_PROGRAMS)
        for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", code)
    }
    assert named - flags == set()


OTHER_FLAGS = {"--config", "--print-config", "--json", "--report", "--help", "--help-all", "--version"}
OTHER_PROGRAMS = ("ray ", "pytest ", "pip ", "python ", "kubectl ", "make ", ".venv/", "docker ", "uv ")


@pytest.mark.parametrize("document", ["README.md", "docs/tutorials/notebook.md"])
def test_python_runs_as_it_stands(document: str, tmp_path: Path) -> None:
    """In a fresh interpreter without a cluster; with a network that needs no download in place of ResNet-50."""
    for number in range(24):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    (tmp_path / "cat.jpg").write_bytes(photo(3))
    code = "\n".join(blocks(read(document), "python"))
    assert code.count('"resnet50"') >= 1
    code = code.replace('backbone="resnet50"', 'backbone="timm:test_resnet", weights="random:1"')
    code = code.replace('Encoder("resnet50")', 'Encoder("timm:test_resnet", weights="random:1")')
    code += "\nassert len(table) == len(features_ND) == 24 and len(hits if 'hits' in dir() else answers[0].hits) in (3, 5)\n"
    process = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("document", ["docs/quickstart.md", JOB])
def test_the_example_config_is_read(document: str) -> None:
    (example,) = blocks(read(document), "yaml")
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
        assert other.exists() or other == ROOT / "docs/reference/commands.md", target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly, so that a page without a place and a link without a target are errors; and of nothing from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img)[^>]* src=\"([^\"]+)|<link[^>]* rel=\"?stylesheet\"?[^>]* href=\"([^\"]+)", page.read_text()
        )
        assert not [address for pair in loaded for address in pair if address.startswith(("http", "//"))], page


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {("", Requirement(text).name) for text in project["dependencies"]}
    for extra, texts in project["optional-dependencies"].items():
        declared |= {(extra, Requirement(text).name) for text in texts}
    explained = {
        (extra.strip("`"), name) for packages, extra, _ in rows("docs/dependencies.md", "package") for name in names(packages)
    }
    assert explained == declared


def test_every_error_code_is_explained() -> None:
    assert [names(code)[0] for code, _, _ in rows("docs/guides/images.md", "code")] == [str(code) for code in ImageErrorCode]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the documents' table `photos-resnet50`, and what `extract` answered."""
    folder = tmp_path_factory.mktemp("docs")
    write_photos(folder / "photos", 6)
    (folder / "photos" / "bad.jpg").write_bytes(b"")
    arguments = ["extract", "--local", "--source.uri", folder / "photos", "--source.labels", "folder", *RECIPE]
    arguments += ["--max-failed-fraction", "0.5"]
    table = folder / "photos-resnet50"
    dry = result_of(tlray(*arguments, "--table", table, "--dry-run"))
    (folder / "result.json").write_text(json.dumps([result_of(tlray(*arguments, "--table", table)), dry]))
    return folder


def test_the_result_is_what_the_documents_say(folder: Path) -> None:
    result, dry = json.loads((folder / "result.json").read_text())
    documented = {name for keys, _ in rows("docs/reference/results.md", "key") for name in names(keys)}
    assert documented == set(result)
    (sentence,) = re.findall(r"^A dry run has (.*)$", read("docs/reference/results.md"), re.MULTILINE)
    assert set(names(sentence)) == set(dry) - set(result)
    meanings = dict(rows("docs/reference/results.md", "key"))
    stages = {*names(meanings["`bottleneck`"]), *names(meanings["`stages`"])}
    assert {result["bottleneck"], *result["stages"]} <= stages  # which one bounds a run of six images is the machine's affair


def test_the_files_and_columns_are_what_the_documents_say(folder: Path) -> None:
    table = folder / "photos-resnet50"
    parts = list(table.rglob("*.parquet"))
    pattern = r"status=(ok|failed)/\d{8}T\d{6}-[0-9a-f]{8}-\d+-\d+-[0-9a-f]{64}\.parquet"
    assert len(parts) == 2 and all(re.fullmatch(pattern, path.relative_to(table).as_posix()) for path in parts)
    assert (table / "recipe.json").exists() and (table / "_delta_log" / "00000000000000000001.json").exists()
    documented = [names(column)[0] for column, _, _ in rows("docs/guides/table.md", "column")]
    assert documented == [*pq.read_schema(parts[0]).names, "status"]


SNIPPET_CHECK = """
if "duckdb" in dir():
    print(duckdb.sql("select count(*) from rows where status = 'ok'").fetchall()[0][0])
else:
    print(len(frame if "frame" in dir() else features))
"""
"""Prints how many good rows a snippet saw, by whatever name it has them."""


@pytest.mark.parametrize("snippet", blocks(read("docs/guides/table.md"), "python"), ids=lambda code: code.split()[1])
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
