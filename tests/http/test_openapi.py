"""Test that the OpenAPI document is valid, complete and correct.

tests/support/wsgi.py checks every reply of the other tests against the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import fields
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings, strategies

import clients
import handler
from clients.messages import NextMessages, Outgoing
from settings import VERSION, Settings
from storage.model import QueueSettings, QueueStats
from tests.support.contract import DOCUMENT, resolved
from tests.support.wsgi import Client, a_store
from web.native import problems
from web.native.request import RUNS
from web.observability.access_log import rule_of
from web.pages import openapi_responses
from web.pages.schemas import SCHEMAS
from web.server.gunicorn_errors import ERROR_CODES

LINES = strategies.lists(strategies.fixed_dictionaries({"text": strategies.text()}), min_size=1)
schemathesis.openapi.media_type(
    "application/x-ndjson", LINES.map(lambda lines: "\n".join(map(json.dumps, lines)).encode())
)
# JSON Schema cannot state that a run's arrays have one length.
SCALAR = strategies.none() | strategies.booleans() | strategies.integers(-(2**53), 2**53) | strategies.text(max_size=9)
RUN = strategies.integers(1, 9).flatmap(
    lambda length: strategies.fixed_dictionaries(
        {"texts": strategies.lists(strategies.text(), min_size=length, max_size=length)},
        optional={
            "attributes": strategies.dictionaries(
                strategies.text(max_size=9), strategies.lists(SCALAR, min_size=length, max_size=length), max_size=3
            )
        },
    )
)
schemathesis.openapi.media_type(RUNS, RUN.map(lambda run: json.dumps(run).encode()))
Case = schemathesis.Case[Any]
SCHEMATHESIS = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation


def test_the_document_is_served() -> None:
    with a_store() as store:
        assert Client(handler.make_app(Settings(), store)).get("/openapi.json").json == DOCUMENT


def test_the_document_is_valid_openapi_and_its_schemas_are_valid_json_schema() -> None:
    schemathesis.openapi.from_dict(deepcopy(DOCUMENT)).validate()
    for schema in SCHEMAS.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)


def test_an_invalid_document_is_detected() -> None:
    broken = deepcopy(DOCUMENT)
    broken["paths"]["/queues"]["get"]["colour"] = "red"
    with pytest.raises(jsonschema_rs.ValidationError):
        schemathesis.openapi.from_dict(broken).validate()


def test_every_route_is_in_the_document_and_the_document_has_no_others() -> None:
    routes = {
        (route.method, re.sub(r"(/queues/.*)\{(id|receipt)\}", r"\1{receipt_or_id}", rule_of(route)))  # one path
        for route in handler.make_app().bottle.routes
    }
    assert {(method, path) for method, path, _ in operations()} == routes


def test_every_operation_has_a_unique_name() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def test_every_reference_resolves_and_every_component_is_used() -> None:
    used = set(re.findall(r"'\$ref': '(#/[^']+)'", repr(DOCUMENT)))
    for target in used:
        assert resolved({"$ref": target})
    there = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in DOCUMENT["components"][kind]
    }
    assert used == there


def test_the_document_has_the_error_codes_of_the_service_with_their_statuses() -> None:
    coded = {(code, status) for status, code, _ in problems.PROBLEMS.values()}
    coded |= {(code, status) for status, (code, _) in problems.ROUTING.items()}
    coded |= {(code, status) for status, code in ERROR_CODES.items()}
    documented = {(code, status) for code, (status, _) in openapi_responses.CODES.items()}
    assert documented == coded


def test_every_code_appears_at_an_operation() -> None:
    found = {
        code
        for _, _, operation in operations()
        for answer in map(resolved, operation["responses"].values())
        for code in answer.get("content", {}).get(openapi_responses.PROBLEM_JSON, {}).get("examples", {})
    }
    assert found == set(openapi_responses.CODES)


def test_no_member_of_a_request_has_a_default() -> None:
    """Generators make a member with a default required, or send the default to a PUT that should keep the setting."""
    bodies = [operation["requestBody"] for _, _, operation in operations() if "requestBody" in operation]
    assert [name for name, schema in reachable(bodies).items() if "'default':" in repr(schema)] == []


def reachable(document: object) -> dict[str, Any]:
    """Return the schemas to which the document refers, also indirectly."""
    found: dict[str, Any] = {}
    pending = [document]
    while pending:
        for name in re.findall(r"'#/components/schemas/(\w+)'", repr(pending.pop())):
            if name not in found:
                found[name] = SCHEMAS[name]
                pending.append(SCHEMAS[name])
    return found


@pytest.mark.parametrize("id", ["1", "9" * 19, "9" * 20, "0", "01"])
def test_the_service_accepts_exactly_the_ids_that_the_document_describes(id: str) -> None:
    described = re.fullmatch(SCHEMAS["Redrive"]["properties"]["ids"]["items"]["pattern"], id) is not None
    with a_store() as store:
        client = Client(handler.make_app(Settings(), store))
        client.call("PUT", "/queues/a", b"{}")
        assert client.post("/queues/a/redrive", {"ids": [id]}).status == (200 if described else 400)


@pytest.mark.parametrize("tags", [{"a\0": "b"}, {"a": "\0b"}, {"a\n": "b\n"}])
def test_the_service_accepts_exactly_the_tags_that_the_document_describes(tags: dict[str, str]) -> None:
    described = jsonschema_rs.is_valid(SCHEMAS["SettingsChange"]["properties"]["tags"], tags)
    with a_store() as store:
        reply = Client(handler.make_app(Settings(), store)).call(
            "PUT", "/queues/a", json.dumps({"tags": tags}).encode()
        )
        assert reply.status == (200 if described else 400)


def test_its_version_is_that_of_the_package() -> None:
    assert DOCUMENT["info"]["version"] == VERSION


def test_the_document_has_all_settings_and_stats() -> None:
    assert list(SCHEMAS["QueueSettings"]["properties"]) == [field.name for field in fields(QueueSettings)]
    assert list(SCHEMAS["QueueStats"]["properties"]) == list(QueueStats._fields)


def test_the_client_writes_the_messages_of_the_document() -> None:
    assert set(Outgoing.__annotations__) == set(SCHEMAS["AddressedMessage"]["properties"])
    assert set(NextMessages.__annotations__) == set(SCHEMAS["Receive"]["properties"])


def test_the_client_reads_the_messages_of_the_document() -> None:
    documented = {name for kind in ("Taken", "Leased", "Peeked") for name in SCHEMAS[f"{kind}Message"]["properties"]}
    assert {field.name for field in fields(clients.Message) if not field.name.startswith("_")} == documented
    assert {field.name for field in fields(clients.AckResult)} == set(SCHEMAS["AckResult"]["properties"])
    assert {field.name for field in fields(clients.TransactionReply)} == set(SCHEMAS["Transacted"]["properties"])


# The application must answer schemathesis' requests as the document says.

_applications = [handler.make_app(Settings())]  # the handler's own app; this one is for the document


def newest(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return _applications[-1](environ, start_response)


@pytest.fixture(scope="module")
def api() -> Iterator[None]:
    """Return an application with its own store."""
    with a_store() as store:
        store.stop_waiting()  # a `wait` is valid, and ends at once
        _applications.append(handler.make_app(Settings(max_body=200_000), store))
        yield
        _applications.pop()


# Statuses of requests that are valid by the document: a reused key, a missing item, a HEAD, a full queue.
VALID = ["2xx", "403", "404", "405", "409", "412", "413", "422", "429"]
INVALID = ["400", "404", "405", "412", "413", "415", "422"]
CHECKS = {
    "positive_data_acceptance": {"expected-statuses": VALID},
    "negative_data_rejection": {"expected-statuses": INVALID},
    # DELETE /messages/ack is a route: that of a receipt.
    "allow_header_conformance": {"enabled": False},
}


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Generate bodies of every media type. schemathesis does not resolve the URL of a server."""
    del raw_schema["servers"]
    for item in raw_schema["paths"].values():
        if more := item.get("post", {}).get("requestBody", {}).get(openapi_responses.MORE_CONTENT):
            item["post"]["requestBody"]["content"] |= more


API = schemathesis.openapi.from_wsgi("/openapi.json", newest, config=schemathesis.Config.from_dict({"checks": CHECKS}))


@API.hook
def filter_case(context: schemathesis.HookContext, case: Case) -> bool:
    """Return whether a request is valid by rules that a schema cannot state.

    A queue is not its own dead-letter queue, or a list in a query. A body belongs to a receipt or to an id. A query
    has one of two parameters.
    """
    body, path, query = case.body, case.path_parameters or {}, case.query or {}
    names = body.get("dead_letter_queue") if isinstance(body, dict) else None
    own = names is not None and names == path.get("queue")
    of_id = isinstance(body, dict) and body.keys() == {"delay"}
    mixed = (case.method == "PATCH" and "queue" in path) and of_id != str(path.get("receipt_or_id")).isdigit()
    both = {"recipient", "recipients"} <= query.keys()
    return not (own or mixed or both) and isinstance(query.get("queue", []), list)


@API.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Replace 1.0, which is an integer for JSON Schema and not for the service."""
    if isinstance(body, dict):
        return {name: map_body(context, value) for name, value in body.items()}
    if isinstance(body, list):
        return [map_body(context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


@API.parametrize()
@settings(SCHEMATHESIS, max_examples=20)
def test_generated_requests_are_answered_as_documented(api: None, case: Case) -> None:
    case.call_and_validate()


@pytest.mark.torture
@API.parametrize()
@settings(SCHEMATHESIS, max_examples=200)
def test_hundreds_of_generated_requests_of_each_kind_are_answered_as_documented(api: None, case: Case) -> None:
    case.call_and_validate()
