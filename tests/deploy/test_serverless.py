"""Test the service on AWS Lambda: the three event formats of API Gateway and function URLs.

The formats, with all relevant fields, are those of AWS's documentation and SDKs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest

import handler
from settings import BadSetting, Settings
from tests.support.live import REPOSITORY
from tests.support.wsgi import Reply, a_store
from web.server.serverless import LambdaHandler

POSTGRES = Settings(database_url="postgresql://nowhere/queue", allow_anonymous=True)  # the test passes the store

Event = dict[str, Any]
Shape = Callable[..., Event]


def rest_api(
    method: str,
    path: str,
    query: str = "",
    body: bytes | None = None,
    *,
    stage: str = "prod",
    base: str = "",
    **headers: str,
) -> Event:
    """Return a payload 1.0 of a REST API with the route /{proxy+}; `base` is a custom base path."""
    all_headers = {"Host": "gy415nuibc.execute-api.us-east-1.amazonaws.com", "X-Forwarded-Proto": "https"} | named(
        headers
    )
    values = parse_qs(query, keep_blank_values=True)
    return {
        "resource": "/{proxy+}",
        "path": base + path,
        "httpMethod": method,
        "headers": all_headers,
        "multiValueHeaders": {name: [value] for name, value in all_headers.items()},
        "queryStringParameters": {name: many[-1] for name, many in values.items()} or None,
        "multiValueQueryStringParameters": values or None,
        "pathParameters": {"proxy": path.removeprefix("/")},
        "stageVariables": None,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "gy415nuibc",
            "domainName": "gy415nuibc.execute-api.us-east-1.amazonaws.com",
            "httpMethod": method,
            "identity": {"sourceIp": "192.0.2.1", "userAgent": "curl/8"},
            "path": f"{base or '/' + stage}{path}",
            "protocol": "HTTP/1.1",
            "requestId": "deef4878-7910-11e6-8f14-25afc3e9ae33",
            "resourcePath": "/{proxy+}",
            "stage": stage,
        },
        "body": None if body is None else body.decode(),
        "isBase64Encoded": False,
    }


def http_api(
    method: str, path: str, query: str = "", body: bytes | None = None, *, stage: str = "$default", **headers: str
) -> Event:
    """Return a payload 2.0 of an HTTP API; its body is in base64."""
    path = path if stage == "$default" else f"/{stage}{path}"
    all_headers = {name.lower(): value for name, value in named(headers).items()}
    event: Event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"host": "aaaaaaaaaa.execute-api.us-west-2.amazonaws.com", "x-forwarded-proto": "https"}
        | all_headers,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "aaaaaaaaaa",
            "domainName": "aaaaaaaaaa.execute-api.us-west-2.amazonaws.com",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "curl/8",
            },
            "requestId": "LV7fzho-PHcEJPw=",
            "routeKey": "$default",
            "stage": stage,
            "time": "21/Apr/2020:15:08:21 +0000",
            "timeEpoch": 1587481701067,
        },
        "isBase64Encoded": body is not None,
    }
    if query:
        event["queryStringParameters"] = {name: ",".join(many) for name, many in parse_qs(query).items()}
    if body is not None:
        event["body"] = b64encode(body).decode()
    return event


def function_url(method: str, path: str, query: str = "", body: bytes | None = None, **headers: str) -> Event:
    """Return the payload 2.0 of a function URL, which has its own domain and the default stage."""
    event = http_api(method, path, query, body, **headers)
    event["requestContext"] |= {"domainName": "abc123.lambda-url.us-west-2.on.aws", "domainPrefix": "abc123"}
    event["cookies"] = ["one=1", "two=2"]
    return event


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


Ask = Callable[[Event], Reply]


@pytest.fixture
def ask() -> Iterator[Ask]:
    with a_store() as store:
        yield asker(LambdaHandler(handler.make_app(POSTGRES, store)))


def asker(function: LambdaHandler) -> Ask:
    def ask(event: Event) -> Reply:
        # Lambda turns events and replies into JSON and back.
        result = json.loads(json.dumps(function(json.loads(json.dumps(event)), None)))
        headers = result.get("headers") or {name: many[-1] for name, many in result["multiValueHeaders"].items()}
        body = b64decode(result["body"]) if result["isBase64Encoded"] else result["body"].encode()
        return Reply(result["statusCode"], {name.lower(): value for name, value in headers.items()}, body)

    return ask


SHAPES = pytest.mark.parametrize("shape", [rest_api, http_api, function_url], ids=lambda shape: shape.__name__)


@SHAPES
def test_a_message_is_sent_leased_and_acked_through_a_function(ask: Ask, shape: Shape) -> None:
    text = 'naïve "日本" \x00 🎈'
    body = json.dumps({"text": text}, ensure_ascii=False).encode()
    sent = ask(shape("POST", "/queues/jobs/messages", body=body, Content_Type="application/json"))
    assert (sent.status, sent.json["id"]) == (200, "1")
    leased = ask(shape("GET", "/queues/jobs/messages", "lease=30"))
    assert leased.json["text"] == text
    assert leased.headers["content-type"] == "application/json"
    acked = ask(shape("DELETE", f"/messages/{leased.json['receipt']}"))
    assert (acked.status, acked.body) == (204, b"")
    assert ask(shape("GET", "/queues/jobs/messages")).status == 204


@SHAPES
def test_a_percent_encoded_path_names_the_same_message(ask: Ask, shape: Shape) -> None:
    ask(shape("POST", "/messages", body=b'{"text": "one"}', Content_Type="application/json"))
    receipt = ask(shape("GET", "/messages", "lease=30")).json["receipt"]
    assert "~" in receipt
    assert ask(shape("DELETE", f"/messages/{receipt.replace('~', '%7E')}")).status == 204


@SHAPES
def test_queues_named_twice_in_a_query_are_read_in_their_order(ask: Ask, shape: Shape) -> None:
    for queue in ("a", "b"):
        ask(shape("POST", f"/queues/{queue}/messages", body=queue.encode(), Content_Type="text/plain"))
    assert [ask(shape("GET", "/messages", "queue=b&queue=a")).json["text"] for _ in range(2)] == ["b", "a"]


@SHAPES
def test_head_and_options_and_bad_paths_consume_nothing(ask: Ask, shape: Shape) -> None:
    ask(shape("POST", "/messages", body=b'{"text": "one"}', Content_Type="application/json"))
    head = ask(shape("HEAD", "/messages"))
    assert (head.status, head.body) == (405, b"")
    assert ask(shape("OPTIONS", "/messages")).status == 204
    assert ask(shape("GET", "/messages%ff")).status == 404
    assert ask(shape("GET", "//messages")).status == 404
    assert ask(shape("GET", "/messages/é")).status in (404, 405)  # as an HTTP API sends a decoded path
    assert ask(shape("GET", "/messages")).json == {"text": "one"}


@SHAPES
def test_a_wrong_request_is_a_problem_and_not_base64(ask: Ask, shape: Shape) -> None:
    problem = ask(shape("GET", "/messages", "limit=0"))
    assert (problem.status, problem.headers["content-type"]) == (400, "application/problem+json")
    assert problem.json["field"] == "limit"


@SHAPES
def test_a_batch_of_ndjson_goes_in_and_out(ask: Ask, shape: Shape) -> None:
    lines = b'{"text": "1"}\n{"text": "2"}\n'
    sent = ask(shape("POST", "/messages", body=lines, Content_Type="application/x-ndjson"))
    assert sent.json == {"ids": ["1", "2"]}
    assert ask(shape("GET", "/messages", "limit=9", Accept="application/x-ndjson")).body == lines


@SHAPES
def test_an_idempotency_key_holds_from_one_event_to_the_next(ask: Ask, shape: Shape) -> None:
    event = shape("POST", "/messages", body=b'{"text": "1"}', Content_Type="application/json", Idempotency_Key="k")
    assert [ask(event).json["id"] for _ in range(2)] == ["1", "1"]


def test_a_body_over_the_limit_is_refused_although_it_came_in_base64() -> None:
    with a_store() as store:
        settings = Settings(database_url=POSTGRES.database_url, allow_anonymous=True, max_body=10)
        ask = asker(LambdaHandler(handler.make_app(settings, store)))
        assert ask(function_url("POST", "/messages", body=b'{"text": "too long"}')).status == 413


def test_the_stage_and_the_base_path_are_not_part_of_the_route(ask: Ask) -> None:
    ask(http_api("POST", "/messages", body=b'[{"text": "x"}]', stage="dev"))
    peek = "/queues/default/peek"
    assert len(ask(http_api("GET", peek, stage="dev")).json) == 1
    assert len(ask(http_api("GET", peek, stage="queues")).json) == 1
    assert len(ask(rest_api("GET", peek, base="/tasks/v1")).json) == 1
    named_route = http_api("GET", peek, stage="dev") | {"pathParameters": {"proxy": peek[1:]}}
    assert len(ask(named_route).json) == 1
    assert ask(http_api("GET", "/devious", stage="dev")).status == 404
    assert ask(http_api("GET", "/messages", stage="dev")).json == {"text": "x"}


class Picture:
    """An application whose reply is not text."""

    settings = POSTGRES

    def __call__(self, environ: Event, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "image/png")])
        return [bytes(range(256))]


@SHAPES
def test_a_reply_that_is_not_text_arrives_byte_for_byte(shape: Shape) -> None:
    function = LambdaHandler(Picture())
    assert function(shape("GET", "/"), None)["isBase64Encoded"] is True
    assert asker(function)(shape("GET", "/")).body == bytes(range(256))


def test_a_sqlite_file_is_refused_with_the_reason() -> None:
    function = LambdaHandler(handler.make_app(Settings(allow_anonymous=True)))
    for _ in range(2):
        with pytest.raises(BadSetting, match=r"QUEUE_DATABASE_URL names a SQLite file.*PostgreSQL"):
            function(function_url("GET", "/health"), None)


def test_a_function_without_tokens_is_refused_with_the_reason() -> None:
    function = LambdaHandler(handler.make_app(Settings(database_url=POSTGRES.database_url)))
    with pytest.raises(BadSetting, match="QUEUE_ALLOW_ANONYMOUS"):
        function(function_url("GET", "/health"), None)


@SHAPES
def test_a_function_accepts_only_requests_with_a_token(shape: Shape) -> None:
    settings = Settings(database_url=POSTGRES.database_url, tokens="shop:a-secret-of-thirty-two-letters:send:*")
    with a_store() as store:
        ask = asker(LambdaHandler(handler.make_app(settings, store)))
        request = {"body": b'{"text": "1"}', "Content_Type": "application/json"}
        assert ask(shape("POST", "/messages", **request)).status == 401
        bearer = "Bearer a-secret-of-thirty-two-letters"
        assert ask(shape("POST", "/messages", Authorization=bearer, **request)).status == 200
        assert ask(shape("GET", "/messages", Authorization=bearer)).status == 403


def test_only_lambda_needs_the_lambda_package() -> None:
    look = "import sys, handler; assert handler.lambda_handler; print('apig_wsgi' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", look], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    assert run.stdout == "False\n"
