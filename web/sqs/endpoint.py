"""The WSGI application that serves SQS requests, and passes all others on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

from storage.store import Store
from web.access import csrf
from web.access.authorization import AuthorizedStore
from web.access.tokens import Grant
from web.native.application import Application
from web.native.request import Environ, connection_check
from web.observability.access_log import REQUEST_ID
from web.sqs.actions.table import ACTIONS
from web.sqs.call import Call
from web.sqs.credentials import admit, check_signature
from web.sqs.errors import error_of
from web.sqs.names import DEFAULT_REGION
from web.sqs.parameters import Parameters
from web.sqs.protocols.recognition import recognize
from web.sqs.protocols.reply import Reply, WireProtocol
from web.sqs.signatures import Signature

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


class ActionRoute(NamedTuple):
    """What the access log and the metrics show of an action, as of a native route."""

    method: str
    rule: str


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
        start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", headers)
        return reply.body

    def _reply(self, environ: Environ, protocol: WireProtocol, request_id: str) -> Reply | None:
        """Return the reply to a request, or None if it turns out to be native."""
        service = self._service
        objection = csrf.objection(environ, only_local_names=service.settings.trusts_loopback, is_action=True)
        if objection is not None:
            raise objection
        signature, grant = Signature.of(environ), None
        if service.access is not None:
            grant = admit(service.access, environ, signature)
        body = service.budget.read_body(environ)
        if service.access is not None and grant is not None and signature is not None:
            check_signature(service.access, environ, grant, signature, body)
        action, document = protocol.request(environ, body)
        if not action:
            return protocol.without_action()
        if action not in ACTIONS:
            raise protocol.unknown_action(action)
        environ["bottle.route"] = ROUTES[action]
        call = Call(
            action=action,
            protocol=protocol,
            parameters=Parameters(document),
            store=self._store(grant),
            base=_base(environ),
            region=signature.scope.region if signature else DEFAULT_REGION,
            token=grant.name if grant else None,
            trace=environ.get("HTTP_X_AMZN_TRACE_ID"),
            present=connection_check(environ),
            pause=service.scheduler.current().wait,
            build=service.build,
        )
        environ["route.url_args"] = {"queue": call.logged_queue}
        result = ACTIONS[action](call)
        return service.build(lambda: protocol.reply(action, result, request_id))

    def _store(self, grant: Grant | None) -> Store:
        store = self._service.unrestricted_store
        return store if self._service.access is None else AuthorizedStore(store, grant)


def _base(environ: Environ) -> str:
    """Return the scheme and the host that the client used, for the URLs of queues."""
    scheme = "https" if environ.get("HTTP_X_FORWARDED_PROTO") == "https" else environ["wsgi.url_scheme"]
    host = environ.get("HTTP_HOST", "")
    return f"{scheme}://{host if _HOST.fullmatch(host) else environ['SERVER_NAME'] + ':' + environ['SERVER_PORT']}"
