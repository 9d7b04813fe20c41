"""What `import tlray` gives: the names it says, each with types and words that agree; and nothing else is loaded."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tlray
from tests.api.conftest import Made
from tlray.api.display import results
from tlray.api.display.results import Result

CALLABLES = [name for name in tlray.__all__ if name not in ("errors", "Recipe")]


def test_importing_loads_next_to_nothing() -> None:
    code = "import sys; import tlray; print(sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"torch", "ray", "numpy", "pyarrow", "pydantic", "yaml", "boto3", "faiss", "PIL", "tqdm", "deltalake", "pandas"}
    assert not heavy & set(ast.literal_eval(loaded))


@pytest.mark.parametrize("name", ["extract", "open", "Encoder", "Model"])
def test_a_name_loads_no_network_before_it_is_used(name: str) -> None:
    code = f"import sys; import tlray; tlray.{name}; print(sorted({{'torch', 'ray', 'faiss', 'fastapi'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_names_modules_and_types_agree() -> None:
    assert sorted(tlray.__all__) == sorted({*tlray._MODULES, "errors"}) == sorted(set(dir(tlray)) - {"__version__"})
    tree = ast.parse(Path(str(tlray.__file__)).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname or alias.name: f"{node.module}:{alias.name}" if alias.asname else node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {**tlray._MODULES, "errors": "tlray"}
    for name, module in tlray._MODULES.items():
        assert getattr(tlray, name).__module__ == ("tlray" if name == "Encoder" else module.partition(":")[0])
    with pytest.raises(AttributeError, match="'tlray' has no attribute 'Encodr'; it has Encoder"):
        _ = tlray.Encodr


def arguments_in_words(function: Any) -> list[str]:
    """Names under `Args:` of a docstring."""
    section = re.search(r"^ *Args:\n(.*?)(?=^ *[A-Z]\w+:\n|\Z)", f"{inspect.getdoc(function)}\n", re.M | re.S)
    return re.findall(r"^    (\w+):", section[1], re.M) if section else []


def public(name: str) -> list[Any]:
    """A public name, and the public methods of a class."""
    value = getattr(tlray, name)
    methods = [each for key, each in vars(value).items() if inspect.isfunction(each) and not key.startswith("_")]
    return [value, *methods] if inspect.isclass(value) else [value]


@pytest.mark.parametrize("name", [name for name in CALLABLES if name != "Table"])
def test_every_argument_is_explained(name: str) -> None:
    for each in public(name):
        parameters = list(inspect.signature(each).parameters)
        if parameters in ([], ["self"], ["self", "X"]):  # scikit-learn's transform, which is `__call__`
            continue
        assert arguments_in_words(each) == [parameter for parameter in parameters if parameter != "self"], each


def test_the_table_explains_its_arguments_too() -> None:
    for each in (tlray.Table.filter, tlray.Table.to_arrow, tlray.Table.to_numpy, tlray.Table.encoder):
        assert arguments_in_words(each) == list(inspect.signature(each).parameters)[1:]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("extract", results.ExtractResult),
        ("predict", results.PredictResult),
        ("train", results.TrainResult),
        ("index", results.IndexResult),
    ],
)
def test_results_have_what_their_types_and_words_say(command: str, kind: type[Result], made: Made) -> None:
    result = made.results[command]
    assert type(result) is kind
    typed = [name for each in kind.__mro__ for name in getattr(each, "__annotations__", {})]
    assert set(typed) <= set(result.to_dict()) and set(typed) <= set(dir(result))
    explained = set(re.findall(r"^    (\w+):", str(inspect.getdoc(kind)), re.M))
    assert explained <= set(typed) and set(kind.__annotations__) - explained <= {"seconds", "images_per_second"}
    assert getattr(result, typed[0]) == result.to_dict()[typed[0]]
    with pytest.raises(AttributeError, match="cannot be changed"):
        setattr(result, typed[0], "other")
    with pytest.raises(AttributeError, match="has no"):
        _ = result.frobnicate
    result.to_dict().clear()
    assert result == kind(result.to_dict()) and kind.__name__ in repr(result) and "<table>" in result._repr_html_()
