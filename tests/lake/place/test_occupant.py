"""Whose folder is it: nothing is written into what belongs to something else, and what is there is told."""

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.factories import make_recipe_file, make_rows
from tests.photos import RECIPE, error_of, result_of, tlray, write_photos
from tlray.errors import PlaceTakenError, TableError
from tlray.lake.place.alias import point
from tlray.lake.place.lease import hold
from tlray.lake.place.occupant import occupant_of, require_new_table_place, require_place
from tlray.lake.storage.open import open_store
from tlray.lake.table.log.delta import delta_uri
from tlray.lake.table.parts import Change, write_part
from tlray.lake.table.table import Table

HASH = "0" * 64


def put(folder: str, *names: str) -> str:
    for name in names:
        open_store(folder).write(f"{folder}/{name}", b"{}")
    return folder


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}" if request.param == "local" else str(request.getfixturevalue("s3_bucket"))


def kind(uri: str) -> str | None:
    found = occupant_of(uri)
    return found.kind if found else None


def test_what_is_told_by_its_names(root: str) -> None:
    assert kind(f"{root}/nothing") is None
    table = Table.create(f"{root}/table", make_recipe_file())
    assert kind(table.uri) == "table"
    point(f"{root}/alias", table.uri)
    assert occupant_of(f"{root}/alias").said == f"an alias of {table.uri}"
    with hold(f"{root}/held", "run"):
        pass
    assert kind(f"{root}/held") == "lease"
    assert kind(put(f"{root}/begun", "recipe.json", "_lease/1.json", f"status=ok/run-{HASH}.parquet")) == "table"
    assert kind(put(f"{root}/delta", "_delta_log/0.json", "part.parquet")) == "delta"
    assert kind(put(f"{root}/index", f"files/rows-{HASH}", f"versions/{1:020}.json")) == "index"
    assert kind(put(f"{root}/half", f"files/faiss-{HASH}")) == "index"
    assert kind(put(f"{root}/model", "model.json", "head.safetensors", "recipe.json", "checkpoints/x")) == "model"
    assert kind(put(f"{root}/photos", "1.jpg", "files/2.jpg")) == "other"
    assert occupant_of(f"{root}/photos").said == "2 objects that are not tlray's (1.jpg ...)"
    assert occupant_of(f"{root}/photos/1.jpg").said == "an object"


def test_each_takes_only_what_is_its_own(root: str) -> None:
    places = {
        "table": put(f"{root}/table", "recipe.json", "_delta_log/0.json"),
        "index": put(f"{root}/index", f"versions/{1:020}.json"),
        "model": put(f"{root}/model", "model.json"),
        "delta": put(f"{root}/delta", "_delta_log/0.json"),
        "other": put(f"{root}/photos", "1.jpg"),
        "lease": put(f"{root}/lease", "_lease/00000000000000000001.json"),
        "nothing": f"{root}/nothing",
    }
    taken = {"table": {"table"}, "index": {"index"}, "model": {"model", "other"}}
    for wanted, own in taken.items():
        for name, uri in places.items():
            if name in own | {"lease", "nothing"}:
                require_place(uri, wanted)
            else:
                with pytest.raises(PlaceTakenError, match=f"{uri} holds .*for the {wanted}"):
                    require_place(uri, wanted)


def test_an_empty_folder_is_anybodys(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert occupant_of(f"file://{tmp_path}/empty") is None


def test_no_alias_over_a_folder(root: str, tmp_path: Path) -> None:
    with pytest.raises(PlaceTakenError, match="is a folder"):
        point(put(f"{root}/photos", "1.jpg"), "s3://lake/t")
    (tmp_path / "empty").mkdir()
    assert "is a folder" in error_of(tlray("alias", tmp_path / "empty", make_table(tmp_path / "t")))


def make_table(path: Path) -> Path:
    Table.create(f"file://{path}", make_recipe_file())
    return path


@pytest.mark.parametrize(
    "name", ["a b", "ü", "a#b", "a?b", 'a"b', "a{b}", "a`b", "a%b", "a[1]", "a^b", "a|b", "a\\b", "a=b", "a*b"]
)
def test_a_name_that_others_cannot_read_is_refused(name: str, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/{name}/t"
    with pytest.raises(TableError, match="in its name") as refused:
        require_new_table_place(uri)
    odd = next(character for character in name if character not in "ab1")
    assert repr(odd) in str(refused.value)
    with pytest.raises(TableError):
        Table.create(uri, make_recipe_file())
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a+b", "a@b", "a,b", "a'b", "(a)", "a!b", "a~b", "a&b", "a$b", "a:b", "a;b"])
def test_a_name_that_is_taken_is_read_by_others(name: str, tmp_path: Path) -> None:
    table = Table.create(f"file://{tmp_path}/{name}/t", make_recipe_file())
    part = write_part(table.uri, make_rows([("x", "1", None)]), status="ok", stem="p", recipe_id="r")
    table.commit(Change([part]), app_id="run", sequence=1, info={})
    path = str(tmp_path / name / "t")
    assert pl.scan_delta(path).collect()["uri"].to_list() == ["x"]
    assert all(Path(file).exists() for file in DeltaTable(path).file_uris())


@pytest.mark.parametrize("name", ["a[1]", "a|b", "a^b", "a\\b"])
def test_a_name_at_which_delta_aborts_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    assert "cannot be kept" in error_of(tlray("show", tmp_path / name))


def test_a_table_made_below_such_a_name_before_is_still_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tlray.lake.table.table.require_new_table_place", lambda uri: None)
        table = Table.create(f"file://{tmp_path}/my tables/t", make_recipe_file())
    part = write_part(table.uri, make_rows([("x", "1", None)]), status="ok", stem="p", recipe_id="r")
    table.commit(Change([part]), app_id="run", sequence=1, info={})
    assert Table.open(table.uri).read()["uri"].to_pylist() == ["x"] and " " in delta_uri(table.uri)


def test_a_run_writes_nothing_into_another_folder(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    run = ["extract", "--local", "--source.uri", tmp_path / "photos", *RECIPE, "--table"]
    assert "holds 3 objects that are not tlray's" in error_of(tlray(*run, tmp_path / "photos"))
    write_deltalake(tmp_path / "theirs", pa.table({"x": [1]}))
    before = sorted((tmp_path / "theirs").rglob("*"))
    assert "not one of tlray's" in error_of(tlray(*run, tmp_path / "theirs"))
    assert "in its name" in error_of(tlray(*run, tmp_path / "my tables"))
    assert sorted((tmp_path / "theirs").rglob("*")) == before
    assert sorted(path for path in (tmp_path / "photos").rglob("*") if path.is_file()) == sorted(photos)
    make_table(tmp_path / "t")
    index = tlray("index", "--table", tmp_path / "t", "--out", tmp_path / "theirs")
    assert "holds another program's Delta table" in error_of(index)
    assert "holds 3 objects" in error_of(tlray("index", "--table", tmp_path / "t", "--out", tmp_path / "photos"))
    assert sorted((tmp_path / "theirs").rglob("*")) == before


def test_show_tells_what_else_is_there(tmp_path: Path) -> None:
    card = {
        "format": 1,
        "task": "single",
        "classes": [f"class {n}" for n in range(1000)],
        "metrics": {"test": {"accuracy": 0.9}},
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    shown = result_of(tlray("show", tmp_path / "model"))
    assert shown == {"model": f"file://{tmp_path}/model", **card, "classes": "1000 entries"}
    (tmp_path / "index" / "versions").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "index" / "versions" / f"{number:020}.json").write_text(json.dumps({"version": number, "rows": 7}))
    assert result_of(tlray("show", tmp_path / "index")) == {"index": f"file://{tmp_path}/index", "version": 2, "rows": 7}
    assert "no table at" in error_of(tlray("show", tmp_path / "nothing"))
    write_photos(tmp_path / "photos", 2)
    assert "which holds 2 objects that are not tlray's" in error_of(tlray("show", tmp_path / "photos"))
    assert "which holds a model" in error_of(tlray("verify", tmp_path / "model"))
    assert "which holds a model" in error_of(tlray("show", tmp_path / "model", tmp_path / "index"))
