"""Check replies of the service against its OpenAPI document."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import jsonschema_rs

from web.pages import openapi, openapi_responses

DOCUMENT = openapi.document()
_PATHS = {
    re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + r"\Z"): path
    for path in sorted(DOCUMENT["paths"], key=lambda path: "{" in path.rpartition("/")[2])  # exact paths first
}


def conforms(method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """Assert that the document has this status, type and content at this route. `headers` are in lower case."""
    operation = _operation(method, path)
    if operation is None:
        known = (401, 403, 404, 421, 204 if method == "OPTIONS" else 405)
        assert status in known, f"{method} {path} is not documented and answers {status}"
        return
    at = f"{operation['operationId']} {status}"
    assert str(status) in operation["responses"], f"{at} is not documented"
    answer = resolved(operation["responses"][str(status)])
    for name, header in answer["headers"].items():
        if name.lower() in headers:
            value: Any = headers[name.lower()]
            _valid(at, header["schema"], int(value) if header["schema"].get("type") == "integer" else value)
        else:
            assert not header.get("required"), f"{at} has no {name}"
    kind = headers.get("content-type", "").partition(";")[0]
    assert kind in answer.get("content", {"": None}), f"{at} is documented, but not with '{kind}'"
    if kind == "application/x-ndjson":
        lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
        _valid(at, answer["content"]["application/json"]["schema"], lines)
    elif kind.endswith("json") and method != "HEAD":
        _valid(at, answer["content"][kind]["schema"], value := json.loads(body))
        if kind == openapi_responses.PROBLEM_JSON:
            assert value["code"] in answer["content"][kind]["examples"], f"{at} is documented without {value['code']}"


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the target of a $ref of the document."""
    while "$ref" in schema:
        found: Any = DOCUMENT
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for pattern, documented in _PATHS.items():
        operation: dict[str, Any] | None = DOCUMENT["paths"][documented].get(method.lower())
        if operation and pattern.match(path):
            return operation
    return None


def _valid(at: str, schema: dict[str, Any], value: Any) -> None:
    for fault in _validator(json.dumps(schema)).iter_errors(value):
        raise AssertionError(f"{at}: {fault}")


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    whole = json.loads(schema) | {"components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
