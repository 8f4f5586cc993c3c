"""Test who may send SQS requests: tokens by session token or signature, their rights, and origins."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

import handler
from settings import Settings
from tests.sqs.aws import ACCOUNT, ENDPOINT, REGION, Raw, boto_client, refused, run, texts
from tests.support.wsgi import Reply, a_store
from web.access import authentication, tokens
from web.access.tokens import Tokens
from web.native.application import Application

SECRETS = {name: f"{name}-secret-0123456789/+~" for name in ("producer", "consumer", "admin", "scraper", "hashed")}
TOKENS = f"""
producer:{SECRETS["producer"]}:send:jobs
consumer:{SECRETS["consumer"]}:receive:jobs
admin:{SECRETS["admin"]}:admin:*
scraper:{SECRETS["scraper"]}:metrics:*
hashed:sha256={tokens.hash_of(SECRETS["hashed"]).hex()}:send,receive:jobs*
"""
JOBS = f"{ENDPOINT}/{ACCOUNT}/jobs"


@pytest.fixture(scope="module")
def guarded() -> Any:
    with a_store() as store:
        app = handler.make_app(Settings(tokens=TOKENS), store)
        store.configure("jobs", {})
        store.configure("secret", {})
        yield app


def client_of(app: Application, name: str, **more: Any) -> Any:
    return boto_client(app, key=name, secret=SECRETS[name], **more)


def with_session(app: Application, name: str) -> Any:
    return boto_client(app, key=name, secret="any", aws_session_token=SECRETS[name])


@pytest.mark.parametrize("connect", [client_of, with_session])
def test_rights_are_those_of_the_token(guarded: Application, connect: Callable[..., Any]) -> None:
    producer, consumer, admin = (connect(guarded, name) for name in ("producer", "consumer", "admin"))
    producer.send_message(QueueUrl=JOBS, MessageBody="a")
    producer.send_message_batch(QueueUrl=JOBS, Entries=[{"Id": "1", "MessageBody": "b"}])
    first, second = consumer.receive_message(QueueUrl=JOBS, MaxNumberOfMessages=10)["Messages"]
    consumer.change_message_visibility(QueueUrl=JOBS, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=9)
    assert {message.leased_by for message in guarded.unrestricted_store.peek("jobs")} == {"consumer"}
    refusals: list[tuple[Any, str, dict[str, Any]]] = [
        (producer, "receive_message", {}),
        (producer, "delete_message", {"ReceiptHandle": first["ReceiptHandle"]}),
        (producer, "purge_queue", {}),
        (producer, "set_queue_attributes", {"Attributes": {"DelaySeconds": "0"}}),
        (producer, "tag_queue", {"Tags": {"a": "b"}}),
        (consumer, "send_message", {"MessageBody": "a"}),
        (consumer, "delete_queue", {}),
        (admin, "send_message", {"MessageBody": "a"}),
        (admin, "receive_message", {}),
    ]
    for client, action, more in refusals:
        with refused("AccessDeniedException"):
            getattr(client, action)(QueueUrl=JOBS, **more)
    for message in (first, second):
        consumer.delete_message(QueueUrl=JOBS, ReceiptHandle=message["ReceiptHandle"])
    admin.purge_queue(QueueUrl=JOBS)
    admin.set_queue_attributes(QueueUrl=JOBS, Attributes={"DelaySeconds": "0"})


def test_a_token_sees_no_source_that_it_does_not_cover() -> None:
    with a_store() as store:
        app = handler.make_app(Settings(tokens=TOKENS), store)
        store.configure("jobs", {})
        store.configure("secret", {"dead_letter_queue": "jobs"})
        seen = {name: client_of(app, name).list_dead_letter_source_queues(QueueUrl=JOBS)["queueUrls"]
                for name in ("producer", "admin")}  # fmt: skip
        assert seen == {"producer": [], "admin": [f"{ENDPOINT}/{ACCOUNT}/secret"]}


def test_any_token_may_look_at_the_queues_it_covers_and_declare_them(guarded: Application) -> None:
    for name in ("producer", "consumer"):
        client = client_of(guarded, name)
        assert client.list_queues()["QueueUrls"] == [JOBS]
        assert client.get_queue_url(QueueName="jobs")["QueueUrl"] == JOBS
        assert client.get_queue_attributes(QueueUrl=JOBS, AttributeNames=["All"])["Attributes"]
        assert client.create_queue(QueueName="jobs", Attributes={"VisibilityTimeout": "30"})["QueueUrl"] == JOBS
        for call in (client.get_queue_url, client.create_queue):
            with refused("AccessDeniedException"):
                call(QueueName="secret")
        with refused("QueueAlreadyExists"):
            client.create_queue(QueueName="jobs", Attributes={"VisibilityTimeout": "31"})


def test_a_token_without_rights_on_queues_is_refused(guarded: Application) -> None:
    with refused("AccessDeniedException"):
        client_of(guarded, "scraper").list_queues()


def test_a_hashed_token_needs_the_session_token(guarded: Application) -> None:
    with refused("SignatureDoesNotMatch", "AWS_SESSION_TOKEN"):
        client_of(guarded, "hashed").list_queues()
    assert with_session(guarded, "hashed").list_queues()["QueueUrls"] == [JOBS]


def test_wrong_secrets(guarded: Application) -> None:
    with refused("InvalidClientTokenId"):
        boto_client(guarded, key="stranger", secret="x").list_queues()
    with refused("SignatureDoesNotMatch"):
        boto_client(guarded, key="admin", secret=SECRETS["producer"]).list_queues()
    with refused("InvalidClientTokenId"):
        boto_client(guarded, key="admin", secret="x", aws_session_token=SECRETS["producer"]).list_queues()
    digest = tokens.hash_of(SECRETS["hashed"]).hex()
    for secret in (digest, f"sha256={digest}"):
        with refused("SignatureDoesNotMatch"):
            boto_client(guarded, key="hashed", secret=secret).list_queues()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {SECRETS['admin']}"},
        {"Authorization": "AWS4-HMAC-SHA256 nonsense"},
        {"Authorization": "AWS4-HMAC-SHA256 Credential=admin/x/y/sqs/aws4_request, SignedHeaders=host, Signature=0"},
    ],
)
def test_a_request_without_a_signature(guarded: Application, headers: dict[str, str]) -> None:
    reply = Raw(guarded).json("ListQueues", **headers)
    assert (reply.status, reply.headers["x-amzn-query-error"]) == (403, "MissingAuthenticationToken;Sender")
    reply = Raw(guarded).query({"Action": "ListQueues"}, **headers)
    assert (reply.status, texts(reply, "Error/Code")) == (403, ["MissingAuthenticationToken"])


def signed(
    method: str, url: str, body: bytes = b"", headers: dict[str, str] | None = None, *, presigned: bool = False
) -> AWSRequest:
    headers = {"Host": "localhost:5000"} | (headers or {})
    request = AWSRequest(method=method, url=url, data=body, headers=headers)
    credentials = Credentials("admin", SECRETS["admin"])
    signer = SigV4QueryAuth(credentials, "sqs", REGION) if presigned else SigV4Auth(credentials, "sqs", REGION)
    signer.add_auth(request)
    return request


def sent(app: Application, request: AWSRequest, **changes: str) -> int:
    prepared = request.prepare()
    for name, value in changes.items():
        if name in ("url", "method"):
            setattr(prepared, name, value)
        elif name == "body":
            prepared.body = value.encode()
        else:
            prepared.headers[name.replace("_", "-")] = value
    return int(run(app, prepared).status_code)


@pytest.mark.parametrize("presigned", [False, True])
@pytest.mark.parametrize("path", ["/", f"/{ACCOUNT}/jobs"])
def test_signatures_of_every_form(guarded: Application, path: str, presigned: bool) -> None:
    value = quote("a b+c/d~é", safe="")
    url = f"{ENDPOINT}{path}?Action=GetQueueUrl&QueueName=jobs&X=&Z={value}"
    if path != "/":
        url = url.replace("GetQueueUrl", "GetQueueAttributes")
    request = signed("GET", url, presigned=presigned)
    assert sent(guarded, request) == 200
    assert sent(guarded, request, url=request.prepare().url.replace("jobs", "jobz", 1)) == 403
    form = b"Action=GetQueueUrl&QueueName=jobs" if path == "/" else b"Action=GetQueueAttributes"
    if not presigned:
        request = signed("POST", f"{ENDPOINT}{path}", form, {"Content-Type": "application/x-www-form-urlencoded"})
        assert sent(guarded, request) == 200
        assert sent(guarded, request, body="Action=PurgeQueue&QueueUrl=jobs") == 403
        assert sent(guarded, request, Content_Type="application/x-www-form-urlencoded;charset=utf-8") == 403


def test_an_old_signature_is_refused(guarded: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    real = datetime.datetime.now(datetime.UTC)
    for minutes, status in ((-16, 403), (-14, 200), (14, 200), (16, 403)):
        moment = real + datetime.timedelta(minutes=minutes)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda moment=moment, **_: moment)
        assert sent(guarded, signed("GET", f"{ENDPOINT}/?Action=ListQueues")) == status


def test_an_action_that_is_not_signed_is_refused(guarded: Application) -> None:
    target = {"X-Amz-Target": "AmazonSQS.ListQueues"}
    request = signed("POST", f"{ENDPOINT}/", b"{}", headers=target)
    assert sent(guarded, request) == 200
    assert sent(guarded, signed("POST", f"{ENDPOINT}/", b"{}"), **target) == 403


def test_a_signature_for_another_service_is_refused(guarded: Application) -> None:
    request = AWSRequest(method="GET", url=f"{ENDPOINT}/?Action=ListQueues", headers={"Host": "localhost:5000"})
    SigV4Auth(Credentials("admin", SECRETS["admin"]), "s3", REGION).add_auth(request)
    assert sent(guarded, request) == 403


def test_wrong_signatures_count_as_wrong_tokens() -> None:
    stranger = {"REMOTE_ADDR": "203.0.113.7"}
    with a_store() as store:
        raw = Raw(handler.make_app(Settings(tokens=TOKENS), store))
        header = (
            f"AWS4-HMAC-SHA256 Credential=stranger/20260101/{REGION}/sqs/aws4_request, SignedHeaders=host, Signature=00"
        )
        replies = [raw.json("ListQueues", Authorization=header, **stranger) for _ in range(authentication.FAILURES + 1)]
        assert replies[-2].json["__type"].endswith("#UnrecognizedClientException")
        assert replies[-1].json["__type"] == "com.amazonaws.sqs#RequestThrottled"
        bearer = raw.http.unchecked("GET", "/queues", Authorization="Bearer wrong", **stranger)
        assert bearer.status == 429


def test_a_secret_is_never_printed() -> None:
    for grant in Tokens(Settings(tokens=TOKENS)).load():
        assert SECRETS[grant.name] not in repr(grant)


def test_a_body_is_not_read_before_the_token_is_known(guarded: Application) -> None:
    reply = Raw(guarded).json("ListQueues", b"x", Content_Length="99999999")
    assert reply.status == 403


def test_a_large_body(guarded: Application) -> None:
    with a_store() as store:
        raw = Raw(handler.make_app(Settings(max_body=1_000), store))
        reply = raw.json("ListQueues", b" " * 1_001)
        assert (reply.status, reply.json["__type"]) == (413, "com.amazon.coral.service#RequestEntityTooLarge")
        assert raw.query({"Action": "ListQueues", "x": "y" * 1_000}).status == 413


# Origins.

GOOD = [
    {},
    {"Sec_Fetch_Site": "same-origin"},
    {"Origin": "http://localhost:5000"},
    {"User_Agent": "Mozilla/5.0 (some SDK)"},
]
BAD = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate"},
    {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},  # a link in a mail
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"User_Agent": "Mozilla/5.0", "Accept_Language": "en"},  # a picture, over plain HTTP
    {"User_Agent": "Mozilla/5.0", "Accept_Language": "en", "Upgrade_Insecure_Requests": "1"},
    {"Sec_Purpose": "prefetch"},
    {"Host": "evil.example"},
]


@pytest.mark.parametrize("path", ["/", f"/{ACCOUNT}/jobs"])
@pytest.mark.parametrize(("origins", "good"), [(GOOD, True), (BAD, False)], ids=["own", "foreign"])
def test_web_pages_of_other_origins_can_do_nothing(origins: list[dict[str, str]], good: bool, path: str) -> None:
    with a_store() as store:
        store.configure("jobs", {})
        raw = Raw(handler.make_app(Settings(), store))
        fields: dict[str, object] = {"Action": "SendMessage", "QueueUrl": JOBS, "MessageBody": "a"}
        for headers in origins:
            replies: list[Reply] = [
                raw.query(fields, path=path, **headers),
                raw.query(fields, path=path, method="GET", **headers),
                raw.json("SendMessage", {"QueueUrl": JOBS, "MessageBody": "a"}, path=path, **headers),
            ]
            expected = 200 if good else 421 if "Host" in headers else 403
            assert [reply.status for reply in replies] == [expected] * 3
            if not good:
                assert texts(replies[0], "Error/Type") == ["Sender"]
                assert replies[2].json["__type"].startswith("com.amazon.coral.service#")
        assert store.queue("jobs").stats.ready == (3 * len(GOOD) if good else 0)
