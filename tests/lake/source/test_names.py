"""Which names are taken, and what is said of the others, against plain Python over the same names."""

import fnmatch
from pathlib import PurePosixPath

import pyarrow as pa
import pytest

from tlray.config import SourceConfig
from tlray.lake.source.listing.names import NameFilter
from tlray.lake.source.listing.report import ListingReport

NAMES = (
    "1.jpg", "a/2.JPG", "a/b/3.Jpeg", "a/no ending", "a/odd.ending", "4.jpg.txt",
    ".5.jpg", ".x/6.jpg", "a/.x/7.jpg", "._8.jpg",
    "_9.jpg", "_x/10.jpg", "a/_x/_DSC0011.JPG", "_x/.y/12.jpg",
    "_DSC0013.JPG", "card/_MG_0014.jpg", "card/_MG_0014-2.jpg", "card/_MG_0014 (1).jpg", "card/_DSC00150.jpg", "_MG_0016.txt",
    "notes.CSV", "Thumbs.db", "a/desktop.ini", "a/1.xmp", "README", "a/README.md", "readme.jpg",
)  # fmt: skip
CAMERA = {"_DSC0013.JPG", "card/_MG_0014.jpg", "card/_MG_0014-2.jpg", "card/_MG_0014 (1).jpg"}
OTHER = {"4.jpg.txt", "_MG_0016.txt", "notes.CSV", "Thumbs.db", "a/desktop.ini", "a/1.xmp", "README", "a/README.md"}
HIDDEN = {name for name in NAMES if any(part.startswith(".") for part in name.split("/"))}
UNDERSCORE = {name for name in NAMES if any(part.startswith("_") for part in name.split("/"))} - CAMERA - {"_MG_0016.txt"}


def filtered(
    names: tuple[str, ...] = NAMES, *, suffixes: tuple[str, ...] = (), **config: object
) -> tuple[set[str], ListingReport]:
    report = ListingReport()
    taken = NameFilter(SourceConfig(uri="x", **config), suffixes).takes(pa.array(names), report)  # type: ignore[arg-type]
    kept = {name for name, is_taken in zip(names, taken, strict=True) if is_taken}
    assert len(kept) + report.left_out.total() == len(names)
    return kept, report


def test_what_other_tools_leave_beside_images_is_left_out_and_counted() -> None:
    kept, report = filtered()
    assert kept == set(NAMES) - HIDDEN - UNDERSCORE - OTHER
    assert report.left_out == {"hidden": len(HIDDEN), "underscore": len(UNDERSCORE - HIDDEN), "ending": len(OTHER)}
    assert all(any(f"as {report.examples[reason]}" in line for line in report.lines()) for reason in report.left_out)


@pytest.mark.parametrize(
    ("value", "opened"), [("hidden", HIDDEN - UNDERSCORE), ("underscore", UNDERSCORE - HIDDEN), ("any_ending", OTHER)]
)
def test_each_rule_has_a_key_that_opens_no_other(value: str, opened: set[str]) -> None:
    assert filtered(also=(value,))[0] - filtered()[0] == opened
    assert filtered(also=("hidden", "underscore", "any_ending"))[0] == set(NAMES)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (".x/**", {".x/6.jpg"}),
        ("**/.x/**", {".x/6.jpg", "a/.x/7.jpg"}),
        ("/.x/", {".x/6.jpg"}),
        ("._*", {"._8.jpg"}),
        ("_x/**", {"_x/10.jpg"}),
        ("_x/", {"_x/10.jpg", "a/_x/_DSC0011.JPG"}),
        ("_x/.y/*", {"_x/.y/12.jpg"}),
        ("_9.jpg", {"_9.jpg"}),
        ("*.txt", {"4.jpg.txt", "_MG_0016.txt"}),
        ("README", {"README"}),
        ("a/**", {"a/2.JPG", "a/b/3.Jpeg", "a/no ending", "a/odd.ending"}),
        ("*", set(NAMES) - HIDDEN - UNDERSCORE - OTHER),
    ],
)
def test_a_pattern_takes_what_it_names_itself_and_opens_nothing_else(pattern: str, expected: set[str]) -> None:
    assert filtered(include=(pattern,))[0] == expected
    everything = filtered(include=("*.jpg", pattern))[0]
    assert everything == expected | {name for name in filtered()[0] if name.lower().endswith(".jpg")}


def test_endings_of_patterns_match_in_any_case_unless_told_otherwise() -> None:
    names = ("a.jpg", "B.JPG", "c.JpG", "D.jpeg", "x/e.JPG", "JPG/f.png", "jpg.png", "b.jpg")
    for patterns, matched in (
        (("*.jpg",), {name for name in names if fnmatch.fnmatch(PurePosixPath(name).name.lower(), "*.jpg")}),
        (("*.JP*",), {"B.JPG", "x/e.JPG"}),  # no ending as it stands
        (("x/*.jpg",), {"x/e.JPG"}),
        (("b.jpg",), {"b.jpg"}),  # a name, not a kind of names
        (("JPG/",), {"JPG/f.png"}),
    ):
        assert filtered(names, include=patterns)[0] == matched
        assert filtered(names, exclude=patterns)[0] == set(names) - matched
    assert filtered(names, include=("*.jpg",), match_case=True)[0] == {"a.jpg", "b.jpg"}
    assert filtered(names, exclude=("*.jpg", "!a.*"))[0] == {"a.jpg", "D.jpeg", "JPG/f.png", "jpg.png"}


def test_the_reason_is_the_first_rule_that_a_name_breaks() -> None:
    kept, report = filtered(("a.jpg", "b.png", "c.jpg", ".d.jpg", "e.txt"), include=("*.jpg",), exclude=("c.*",))
    assert kept == {"a.jpg"}
    assert report.left_out == {"hidden": 1, "ending": 1, "exclude": 1, "include": 1}


def test_of_files_that_hold_images_those_of_another_ending_are_left_out() -> None:
    kept, report = filtered(("1.tar", "2.TAR", "3.tar.gz", "4.jpg", "_5.tar", "_DSC0006.tar"), suffixes=(".tar",))
    assert kept == {"1.tar", "2.TAR"}
    assert report.left_out == {"other_format": 2, "underscore": 2}


@pytest.mark.parametrize(
    ("folder", "config", "reason"),
    [
        ("lost+found/", {"exclude": ("lost+found/",)}, "exclude"),
        ("a/lost+found/", {"exclude": ("lost+found",)}, "exclude"),
        ("lost+found/", {"exclude": ("lost+found/**",)}, "exclude"),
        ("lost+found/", {"exclude": ("/lost+found/*",)}, "exclude"),
        ("a/lost+found/", {"exclude": ("/lost+found/*",)}, None),
        ("a/", {"exclude": ("*.jpg",)}, None),
        ("a/", {"exclude": ("a/", "!a/keep.jpg")}, None),
        (".Trash-1000/", {}, "hidden"),
        ("a/.git/", {"also": ("hidden",)}, None),
        (".git/", {"include": (".x/**",)}, None),
        ("__MACOSX/", {}, "underscore"),
        ("a/b/", {}, None),
    ],
)
def test_folders_in_which_nothing_can_be_taken_are_not_entered(
    folder: str, config: dict[str, object], reason: str | None
) -> None:
    names = NameFilter(SourceConfig(uri="x", **config))  # type: ignore[arg-type]
    assert names.why_not_enter(folder) == reason
    if reason is not None:
        assert not names.takes(pa.array([folder + name for name in ("1.jpg", "b/2.jpg", "keep.jpg")])).any()
