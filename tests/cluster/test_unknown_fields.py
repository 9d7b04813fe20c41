"""Every manifest of cluster/ against Kubernetes' and KubeRay's schemas, by which an unknown field is an error anywhere."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from tests.cluster.schemas import ROOT, schema_of, schema_problems

VERSIONS = ("1.31.0", "1.37.0")
"""Of Kubernetes: the oldest and the newest that the manifests are held against."""
DOCUMENTS = [
    pytest.param(document, id=f"{path.name} {document['kind']} {document['metadata']['name']}")
    for path in sorted([*(ROOT / "cluster").glob("*.yaml"), *(ROOT / "cluster/kubernetes").glob("*.yaml")])
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
UNKNOWN = {"unknown": "field"}
"""Refused too where a schema takes any name, as all of those are maps of texts or quantities."""


@cache
def of_kubernetes(kind: str, api_version: str, version: str) -> jsonschema.Draft202012Validator:
    """Kubernetes' own schema of a kind, strict about unknown fields, as the package kubernetes-validate has it."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    group = "-".join([api_version.split(".")[0].split("/")[0], *api_version.split("/")[1:]])
    schemas = [json.loads((folder / name).read_text()) for name in (f"{kind.lower()}-{group}.json", "_definitions.json")]
    registry: Registry[Any] = Registry()
    for schema in schemas:
        registry = Resource.from_contents(schema) @ registry
    return jsonschema.Draft202012Validator(schemas[0], registry=registry)


def problems(document: dict[str, Any], version: str) -> list[str]:
    if not document["apiVersion"].startswith("ray.io/"):
        found = of_kubernetes(document["kind"], document["apiVersion"], version).iter_errors(document)
        return [error.message for error in found]
    shell = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}  # of which its definition says nothing
    return problems(shell, version) + schema_problems(document, of_kuberay(f"{document['kind'].lower()}s"))


@cache
def of_kuberay(plural: str) -> dict[str, Any]:
    return schema_of(plural)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_it_is_one_that_kubernetes_takes(document: dict[str, Any], version: str) -> None:
    assert problems(document, version) == []


def mappings(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in a document mappings stand."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mappings(inner, (*path, key))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_an_unknown_field_is_an_error_wherever_it_stands(document: dict[str, Any]) -> None:
    places = list(mappings(document))
    assert len(places) > 1
    let_in = []
    for path in places:
        changed = copy.deepcopy(document)
        at = changed
        for key in path:
            at = at[key]
        at["unknownField"] = UNKNOWN
        if not problems(changed, VERSIONS[-1]):
            let_in.append(path)
    assert let_in == []


def test_all_manifests_are_held() -> None:
    kinds = {param.values[0]["kind"] for param in DOCUMENTS}
    assert {"CronJob", "NetworkPolicy", "RayCluster", "RayCronJob", "RayJob", "RayService", "RoleBinding"} <= kinds
    held = {param.id.split(" ")[0] for param in DOCUMENTS}
    others = {path.name for path in (ROOT / "cluster").glob("**/*.yaml")} - held
    assert others == {"alerts.yaml", "alerts_test.yaml", "aws.yaml", "skypilot.yaml"}
