"""KubeRay's own schemas, made strict: what an API server would refuse or drop without a word."""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TLRAY_SHARED") or ROOT / ".." / "shared").resolve()


def schema_problems(value: Any, schema: dict[str, Any]) -> list[str]:
    """What an API server would refuse, and what it would drop without a word: fields that the schema does not know."""
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(value)]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields forbidden wherever it lists the known ones, and Kubernetes' own extensions resolved."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in schema:
        result["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result


def schema_of(plural: str) -> dict[str, Any]:
    """KubeRay's own schema of a kind of resource, made strict about unknown fields."""
    path = SHARED / "kuberay-crds" / f"ray.io_{plural}.yaml"
    if not path.exists():
        pytest.skip(f"no KubeRay definitions at {path}: set TLRAY_SHARED to the folder that holds kuberay-crds")
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in document["spec"]["versions"] if version["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return schema
