"""What the tests of the SQS endpoint share: boto3 on an application in this process, and requests by the byte."""

from __future__ import annotations

import hashlib
import json
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.wsgi import App, Client, Reply

ENDPOINT = "http://localhost:5000"
REGION = "eu-central-1"
ACCOUNT = "000000000000"


class Raw:
    """Sends requests as SDKs write them."""

    def __init__(self, app: App, **always: str) -> None:
        self.http = Client(app, Host="localhost:5000", **always)

    def json(self, action: str, document: object = None, /, path: str = "/", **headers: str) -> Reply:
        body = document if isinstance(document, bytes) else json.dumps({} if document is None else document).encode()
        headers = {"Content_Type": "application/x-amz-json-1.0", "X_Amz_Target": f"AmazonSQS.{action}"} | headers
        return self.http.unchecked("POST", path, body, **headers)

    def query(self, fields: Mapping[str, object], /, path: str = "/", method: str = "POST", **headers: str) -> Reply:
        encoded = urlencode({"Version": "2012-11-05", **fields})
        if method == "GET":
            return self.http.unchecked("GET", f"{path}?{encoded}", **headers)
        headers = {"Content_Type": "application/x-www-form-urlencoded; charset=utf-8"} | headers
        return self.http.unchecked("POST", path, encoded.encode(), **headers)


def xml(reply: Reply) -> ElementTree.Element:
    """Return the document of a reply, without the namespace in its names."""
    assert reply.headers["content-type"] == "text/xml"
    assert reply.body.startswith(b'<?xml version="1.0"?>')
    return ElementTree.fromstring(reply.body.replace(b' xmlns="http://queue.amazonaws.com/doc/2012-11-05/"', b"", 1))


def texts(reply: Reply, path: str) -> list[str]:
    return [element.text or "" for element in xml(reply).findall(path)]


class _Body:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self._content


def boto_client(app: App, *, endpoint: str = ENDPOINT, key: str = "test", secret: str = "test", **more: Any) -> Any:
    """Return a boto3 client whose requests run in this process."""
    client = boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(parameter_validation=False, retries={"total_max_attempts": 1}),
        **more,
    )
    client.meta.events.register("before-send.sqs", lambda request, **_: run(app, request))
    return client


def run(app: App, request: AWSPreparedRequest) -> AWSResponse:
    """Return the application's response to a request of botocore."""
    parts = urlsplit(request.url)
    headers = {
        name.replace("-", "_"): value.decode() if isinstance(value, bytes) else value
        for name, value in request.headers.items()
        if name.lower() != "content-length"
    }
    body = request.body or b""
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    sent = {"Host": parts.netloc} | headers
    reply = Client(app).unchecked(
        request.method, target, body.encode() if isinstance(body, str) else bytes(body), **sent
    )
    return AWSResponse(request.url, reply.status, reply.headers, _Body(reply.body))


@contextmanager
def refused(code: str, message: str | None = None) -> Iterator[None]:
    """Check that the call inside is refused with this code, and with these words in its message."""
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response["Error"]
    assert code in (error["Code"], error.get("QueryErrorCode"))
    assert message is None or message in error["Message"]


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def md5_of_attributes(attributes: dict[str, dict[str, Any]]) -> str:
    """Return the MD5 sum of attributes as the developer guide of SQS defines it."""
    digest = hashlib.md5()

    def add(value: bytes) -> None:
        digest.update(struct.pack(">I", len(value)) + value)

    for name, attribute in sorted(attributes.items()):
        add(name.encode())
        add(attribute["DataType"].encode())
        if "BinaryValue" in attribute:
            digest.update(b"\2")
            add(attribute["BinaryValue"])
        else:
            digest.update(b"\1")
            add(attribute["StringValue"].encode())
    return digest.hexdigest()
