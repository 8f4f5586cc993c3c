"""The WSGI application that serves SQS requests, and passes all others on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

from storage.store import Store
from web.access import csrf
from web.access.authentication import Access
from web.access.authorization import AuthorizedStore
from web.access.tokens import Grant
from web.native.application import Application
from web.native.request import Environ
from web.observability.access_log import REQUEST_ID
from web.sqs.actions.table import ACTIONS
from web.sqs.call import Call
from web.sqs.credentials import admit, check_signature
from web.sqs.errors import error_of
from web.sqs.parameters import Parameters
from web.sqs.protocols.recognition import recognize
from web.sqs.protocols.reply import Reply, WireProtocol
from web.sqs.signatures import Signature


class ActionRoute(NamedTuple):
    """What the access log and the metrics show of an action, as of a native route."""

    method: str
    rule: str


_STATUSES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
ROUTES = {action: ActionRoute("POST", f"AmazonSQS.{action}") for action in ACTIONS}
OTHER = ActionRoute("POST", "AmazonSQS")  # a request without a known action


def mount(service: Application) -> None:
    """Serve SQS requests before the native routes."""
    service.more_routes += [*ROUTES.values(), OTHER]
    service.handler = Endpoint(service, service.handler)


class Endpoint:
    def __init__(self, service: Application, native: Callable[..., Iterable[bytes]]) -> None:
        self._service = service
        self._native = native

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        protocol = recognize(environ)
        if protocol is None:
            return self._native(environ, start_response)
        environ["bottle.route"] = OTHER
        request_id = environ[REQUEST_ID]
        try:
            reply = self._reply(environ, protocol, request_id)
        except Exception as fault:
            reply = protocol.error(error_of(fault, request_id), request_id)
        if reply is None:
            del environ["bottle.route"]
            return self._native(environ, start_response)
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(reply.length)),
            ("Cache-Control", "no-store"),
            ("x-amzn-RequestId", request_id),
            *reply.headers.items(),
        ]
        start_response(_STATUSES[reply.status], headers)
        return reply.body

    def _reply(self, environ: Environ, protocol: WireProtocol, request_id: str) -> Reply | None:
        """Return the reply to a request, or None if it turns out to be native."""
        service = self._service
        objection = csrf.objection(environ, only_local_names=service.settings.trusts_loopback, is_action=True)
        if objection is not None:
            raise objection
        if service.access is None:
            grant, body = None, service.budget.read_body(environ, is_form=protocol.is_form)
        else:
            grant, body = self._admit(service.access, environ, protocol)
        action, document = protocol.request(environ, body)
        if not action:
            return protocol.without_action()
        if action not in ACTIONS:
            raise protocol.unknown_action(action)
        environ["bottle.route"] = ROUTES[action]
        store: Store = service.unrestricted_store
        if service.access is not None:
            store = AuthorizedStore(store, grant)
        call = Call(action, protocol, Parameters(document), store, service, environ, grant.name if grant else None)
        environ["route.url_args"] = {"queue": call.logged_queue}
        result = ACTIONS[action](call)
        return service.build(lambda: protocol.reply(action, result, request_id))

    def _admit(self, access: Access, environ: Environ, protocol: WireProtocol) -> tuple[Grant, bytes]:
        """Return the caller's grant, and the body. Raises SqsError, Forbidden, TooManyFailures."""
        signature = Signature.of(environ)
        grant = admit(access, environ, signature)
        body = self._service.budget.read_body(environ, is_form=protocol.is_form)
        if signature is not None:
            check_signature(access, environ, grant, signature, body)
        return grant, body
