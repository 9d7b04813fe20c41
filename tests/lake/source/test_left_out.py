"""What a listing leaves out, by reason, against os.walk over the same tree."""

import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from tests.lake.source.test_sources import names, source, tree
from tlray.errors import AccessError, SourceError, StorageError
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.source import Source
from tlray.lake.storage.open import open_store


def listed(found: Source) -> tuple[set[str], ListingReport]:
    report = ListingReport()
    uris = [uri for page in found.pages(report) for uri in page["uri"].to_pylist()]
    return {uri.removeprefix(found.uri + "/") for uri in uris}, report


def test_every_name_of_a_tree_is_listed_or_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "top", "1.jpg", "a/2.png", "a/notes.txt", ".3.jpg", "_4.jpg", "_DSC0005.JPG", ".git/6", ".git/7.jpg")
    (root / "gone.jpg").symlink_to(root / "nowhere")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "link.jpg").symlink_to(root / "1.jpg")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "a" / "socket"))
        kept, report = listed(source(root, exclude=("*.png",)))
    assert kept == {"1.jpg", "_DSC0005.JPG", "link.jpg"}
    assert report.left_out == {
        "hidden": 2,  # .git is not entered and counts once
        "underscore": 1,
        "ending": 1,
        "exclude": 1,
        "broken_link": 2,
        "not_a_file": 2,
    }
    walked = sum(len(files) for folder, _, files in os.walk(root) if ".git" not in folder)
    assert len(kept) + report.left_out.total() - 1 == walked
    assert "left out: 1 names that match source.exclude, as a/2.png" in report.lines()


def test_folders_that_are_left_out_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, "a/1.jpg", "lost+found/2.jpg", ".Trash-1000/3.jpg", "b/_tmp/4.jpg", "b/raw/5.jpg")
    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: scanned.append(str(folder)) or scandir(folder))
    kept, report = listed(source(root, exclude=("lost+found/", "b/raw/**")))
    assert kept == {"a/1.jpg"}
    assert set(scanned) == {str(root), str(root / "a"), str(root / "b")}
    assert report.left_out == {"exclude": 2, "hidden": 1, "underscore": 1}
    with pytest.raises(SourceError, match=r"has no image: .*left out"):
        listed(source(root, include=("*.png",)))


def test_an_unreadable_folder_ends_the_run_unless_it_is_excluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, "a/1.jpg", "lost+found/2.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AccessError, match=r"leave it out with source\.exclude"):
        listed(source(root))
    assert listed(source(root, exclude=("lost+found/",)))[0] == {"a/1.jpg"}


def test_paths_that_are_too_long_are_counted_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for depth in range(25):
        Path("x" * 200).mkdir()
        os.chdir("x" * 200)
        if depth in (0, 24):
            Path("i.jpg").write_bytes(b"x")
    monkeypatch.chdir("/")
    kept, report = listed(source(tmp_path))
    assert kept == {"x" * 200 + "/i.jpg"}
    assert report.left_out == {"path_too_long": 1}
    with pytest.raises(StorageError, match="the path is longer than the operating system takes"):
        list(open_store("file:///").list(f"file://{tmp_path}"))


def test_names_of_a_listing_that_are_not_below_the_source_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "lake", "1.jpg")
    (tmp_path / "names.txt").write_text("1.jpg\n/elsewhere/2.jpg\n.3.jpg\n4.txt\n")
    kept, report = listed(source(root, listing=str(tmp_path / "names.txt")))
    assert kept == {"1.jpg"}
    assert report.left_out == {"outside": 1, "hidden": 1, "ending": 1}


def test_on_s3(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    for name in ("p/1.jpg", "p/_DSC0002.JPG", "p/.x/3.jpg", "p/.x/4.jpg", "p/5.csv", "p/raw/6.JPG"):
        store.write(f"{s3_bucket}/{name}", b"x")
    kept, report = listed(source(f"{s3_bucket}/p", exclude=("raw/", "*.csv"), include=("*.jpg",)))
    assert kept == {"1.jpg", "_DSC0002.JPG"}
    assert report.left_out == {"hidden": 2, "ending": 1, "exclude": 1}


class TestLabels:
    def test_labels_that_are_found_nowhere_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text("path,label\na.jpg,\nb.jpg,nan\n")
        with pytest.raises(SourceError, match=r"none of the 2 images of .*m\.csv has a label; looked for .* column 'label'"):
            listed(source(tmp_path / "m.csv", labels="label"))
        (tmp_path / "m.csv").write_text("path,label\na.jpg,\nb.jpg,cat\nc.jpg,NaN\n")
        assert len(listed(source(tmp_path / "m.csv", labels="label"))[0]) == 3
        assert len(listed(source(tmp_path / "m.csv", labels="label", keys_to="b"))[0]) == 1  # a slice may have none

    def test_all_items_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text("path,label\nb.jpg,dog\na.jpg,\nb.jpg,cat\nb.jpg,\n")
        report = ListingReport()
        items = source(tmp_path / "m.csv", labels="label").items(report)
        assert items["uri"].to_pylist() == [f"file://{tmp_path}/a.jpg", f"file://{tmp_path}/b.jpg"]
        assert items["label"].to_pylist() == [None, "dog"]
        assert (report.left_out, report.unlabelled) == ({"repeated": 2}, 1)
        assert report.examples["repeated"].endswith("b.jpg")

    def test_a_slice_has_the_labels_of_the_whole(self, tmp_path: Path) -> None:
        root = tree(tmp_path / "tree", "a/1.jpg", "a/b/2.jpg", "3.jpg")

        def labels(found: Source) -> dict[str, str]:
            table = pa.concat_tables(found.pages())
            return dict(zip(table["uri"].to_pylist(), table["label"].to_pylist(), strict=True))

        whole = labels(source(root, labels="folder"))
        assert whole == {
            f"file://{root}/{name}": Path(f"{root}/{name}").parent.name for name in ("a/1.jpg", "a/b/2.jpg", "3.jpg")
        }
        for part in (root / "a", root / "a" / "b", root / "a" / "1.jpg", f"{root}/a/"):
            assert labels(source(part, labels="folder")).items() <= whole.items()
        (tmp_path / "m.csv").write_text("path\ntree/a/1.jpg\n")
        assert labels(source(tmp_path / "m.csv", labels="folder")).items() <= whole.items()


def test_a_single_file_that_is_no_image_by_its_name_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "list.txt", "x.tgz", "photo.jpg", "blob")
    for name in ("list.txt", "x.tgz"):
        with pytest.raises(SourceError, match=r"is no image, manifest .* by its name; .*--source\.listing"):
            source(tmp_path / name)
        assert names(source(tmp_path / name, format="images")) == [""]
    assert names(source(tmp_path / "blob")) == names(source(tmp_path / "photo.jpg")) == [""]
