"""The service: `handler:app` is what gunicorn serves. Each route parses, calls the store and answer.

What a request may say is read in doors/wire.py; what happens to it is promised in storage/model.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request

from doors import answer, auth, metrics, openapi, origin, page, parse, watch, wire
from doors.counts import Counts, Slot
from doors.granted import GrantedStore
from doors.serverless import LambdaHandler
from doors.tokens import Tokens
from settings import Settings
from storage import errors, open_store
from storage.bells import Bell
from storage.model import Store, check_queue_name

_log = logging.getLogger("queue_service")

# Every error a client can meet: (status, code, title). The nearest class of a fault's own counts.
PROBLEMS: dict[type[Exception], tuple[int, str, str]] = {
    errors.InvalidInput: (400, "invalid_input", "The request is not valid"),
    wire.BadRequest: (400, "bad_request", "The request cannot be read"),
    wire.CrossOrigin: (403, "cross_origin", "Another origin's page may not do this"),
    auth.Unauthenticated: (401, "unauthenticated", "A token is needed"),
    auth.Forbidden: (403, "forbidden", "The token may not do this"),
    errors.QueueNotFound: (404, "queue_not_found", "No such queue"),
    errors.MessageNotFound: (404, "message_not_found", "No such message"),
    errors.StaleReceipt: (409, "stale_receipt", "The receipt does not hold any more"),
    errors.PreconditionFailed: (412, "precondition_failed", "The settings have changed"),
    wire.BodyTooLarge: (413, "body_too_large", "The body is too large"),
    wire.UnsupportedMediaType: (415, "unsupported_media_type", "The body's type is not taken"),
    wire.UnknownHost: (421, "unknown_host", "The service is not called by this name"),
    errors.IdempotencyMismatch: (422, "idempotency_mismatch", "The Idempotency-Key belongs to another request"),
    errors.QueueFull: (429, "queue_full", "The queue is full"),
    auth.TooManyFailures: (429, "too_many_failures", "Too many wrong tokens"),
    errors.Busy: (503, "busy", "The service is busy"),
    errors.DiskFull: (503, "disk_full", "The disk is full"),
    errors.Unavailable: (503, "unavailable", "The service cannot do this now"),
    Exception: (500, "internal_error", "Something went wrong inside"),
}
ROUTING = {404: ("not_found", "No such route"), 405: ("method_not_allowed", "Not a method of this route")}


class Application:
    """The WSGI application; its store is opened when first asked for, in the process that uses it."""

    def __init__(self, settings: Settings | None = None, store: Store | None = None) -> None:
        self._settings = settings
        self._store = store
        self._opening = threading.Lock()
        self.bell: Bell | None = None  # gunicorn.conf.py sets one that the other processes ring
        self.bottle = _mount_routes(self)
        if store is not None:
            store.observe(self.slot)

    def __call__(self, environ: wire.Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        # Bottle would take /messages%ff and /queues/a/messages%0a for a read, and so remove a message.
        if "//" in path or "\n" in path or not _is_utf8(path):
            environ["PATH_INFO"] = "/no/such/route"
        return self._watch(self.bottle, environ, start_response)

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_env()
        return self._settings

    @cached_property
    def access(self) -> auth.Access | None:
        """None where nobody is asked for a token."""
        return auth.Access(Tokens(self.settings)) if self.settings.has_tokens else None

    @cached_property
    def slot(self) -> Slot:
        """Where this process counts; gunicorn.conf.py sets one that the other processes can tell too."""
        return Counts(slots=1).take()

    @property
    def store(self) -> Store | GrantedStore:
        """For the request under way: as much of it as its token allows."""
        if self.access is None:
            return self.whole_store
        return GrantedStore(self.whole_store, request.environ.get(wire.GRANT))

    @property
    def whole_store(self) -> Store:
        if self._store is None:
            with self._opening:
                if self._store is None:
                    self._store = open_store(self.settings.database_url, pollers=self.settings.pollers, bell=self.bell)
                    self._store.observe(self.slot)
        return self._store

    @cached_property
    def _watch(self) -> watch.Watch:
        return watch.Watch(self.slot, self.bottle.routes, watch.access_log(self.settings.access_log))

    def body(self) -> bytes:
        """Of the request under way."""
        return wire.read_body(request.environ, self.settings.max_body)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def make_app(settings: Settings | None = None, store: Store | None = None) -> Application:
    """An application of its own; settings come from the environment, and the store from them, when first needed."""
    return Application(settings, store)


def _mount_routes(service: Application) -> Bottle:
    app = Bottle()
    app.install(_answer_faults)
    app.install(auth.Guard(lambda: service.access))
    app.default_error_handler = _problem_of_routing
    app.add_hook("before_request", lambda: _refuse_strangers(service.settings))
    _mount_messages(app, service)
    _mount_queues(app, service)
    _mount_operations(app, service)
    metrics.mount(app, service)
    openapi.mount(app)
    page.mount(app)
    return app


def _mount_messages(app: Bottle, service: Application) -> None:
    @app.post("/messages")
    @app.post("/queues/<queue>/messages")
    def send(queue: str = "default") -> HTTPResponse:
        parse.nothing(request.environ)
        messages, batch = parse.messages(request.environ, content := service.body())
        once = wire.read_once(request.environ, content)
        ids = service.store.send(check_queue_name(queue), messages, once)
        return answer.ids(ids) if batch else answer.stored(ids[0], messages[0])

    @app.get("/messages")
    @app.get("/queues/<queue>/messages")
    def receive(queue: str | None = None) -> HTTPResponse:
        ask, batch = parse.ask(request.environ, queue)
        once = wire.read_once(request.environ)
        messages = service.store.receive(ask, once, wire.presence(request.environ))
        return answer.delivery(messages, ask, batch, wire.wanted(request.environ, wire.NDJSON, wire.RUNS))

    @app.route("/messages", method="HEAD")
    @app.route("/queues/<queue>/messages", method="HEAD")
    def refuse_head(**_: str) -> HTTPResponse:
        raise HTTPError(405, Allow="GET,HEAD,POST")  # else Bottle would run GET, and a message would be gone

    @app.delete("/messages/<receipt>")
    @app.delete("/queues/<queue>/messages/<receipt>")
    def settle(receipt: str, queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        service.store.settle(receipt, queue)
        return answer.nothing()

    @app.route("/messages/<receipt>", method="PATCH")
    @app.route("/queues/<queue>/messages/<receipt>", method="PATCH")
    def change_lease(receipt: str, queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        change = parse.lease_change(request.environ, service.body())
        if change.lease:
            return answer.extended(service.store.extend(receipt, change.lease, queue))
        if change.dead:
            service.store.reject(receipt, change.reason, queue)
        else:
            service.store.release(receipt, change.delay, queue)
        return answer.nothing()

    @app.post("/messages/ack")
    @app.post("/queues/<queue>/messages/ack")
    def ack(queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        receipts = parse.receipts(request.environ, service.body())
        named = None if queue is None else check_queue_name(queue)
        return answer.value(service.store.ack(receipts, named)._asdict())

    @app.post("/transactions")
    def transact() -> HTTPResponse:
        parse.nothing(request.environ)
        steps = parse.transaction(request.environ, content := service.body())
        once = wire.read_once(request.environ, content)
        done = service.store.transact(*steps, once, wire.presence(request.environ))
        return answer.transacted(done, steps.receive, wire.wanted(request.environ, wire.RUNS))


def _mount_queues(app: Bottle, service: Application) -> None:
    @app.get("/queues")
    def queues() -> HTTPResponse:
        parse.nothing(request.environ)
        return answer.value({"queues": [answer.stats(queue) for queue in service.store.queues()]})

    @app.get("/queues/<queue>")
    def describe(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        return answer.description(service.store.queue(queue))

    @app.put("/queues/<queue>")
    def configure(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        changes = parse.settings(request.environ, service.body())
        version = parse.if_match(request.environ)
        return answer.description(service.store.configure(check_queue_name(queue), changes, version))

    @app.delete("/queues/<queue>")
    def delete_queue(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        service.store.delete_queue(queue)
        return answer.nothing()

    @app.get("/queues/<queue>/peek")
    def peek(queue: str) -> HTTPResponse:
        limit, after, state = parse.peek(request.environ)
        messages = service.store.peek(check_queue_name(queue), limit=limit, after=after, state=state)
        told = [answer.envelope(message, state=message.state) for message in messages]
        return answer.batch(told, wire.wanted(request.environ, wire.NDJSON))

    @app.post("/queues/<queue>/purge")
    def purge(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        parse.empty(request.environ, service.body())
        return answer.value({"purged": service.store.purge(queue)})

    @app.post("/queues/<queue>/redrive")
    def redrive(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        limit = parse.limit(request.environ, service.body())
        return answer.value({"redriven": service.store.redrive(queue, limit)})


def _mount_operations(app: Bottle, service: Application) -> None:
    @app.get("/health")
    def health() -> HTTPResponse:
        return answer.value({"status": "alive"})

    @app.get("/ready")
    def ready() -> HTTPResponse:
        service.store.check_ready()
        return answer.value({"status": "ready"})


def _refuse_strangers(settings: Settings) -> None:
    fault = origin.objection(request.environ, only_local_names=settings.trusts_loopback)
    if fault is not None:
        raise _problem_of_fault(fault)


def _answer_faults(route: Callable[..., HTTPResponse]) -> Callable[..., HTTPResponse]:
    """Turns whatever a route raises into the answer the table names."""

    def answered(*args: Any, **kwargs: Any) -> HTTPResponse:
        try:
            return route(*args, **kwargs)
        except HTTPResponse:
            raise  # Bottle's own
        except errors.TooManyPollers:
            return answer.nothing(Retry_After=str(answer.RETRY_AFTER))
        except Exception as fault:
            return _problem_of_fault(fault)

    return answered


def _problem_of_fault(fault: Exception) -> HTTPResponse:
    status, code, title = next(PROBLEMS[kind] for kind in type(fault).__mro__ if kind in PROBLEMS)
    if status == 500:
        reference = request.environ[watch.REQUEST_ID]
        _log.error("internal error %s", reference, exc_info=fault)
        detail = f"the log tells more under the reference {reference}"
    else:
        detail = str(fault)
    more = {name: getattr(fault, name, None) for name in ("field", "index", "queue")}
    return answer.problem(status, code, title, detail, headers=getattr(fault, "headers", None), **more)


def _problem_of_routing(error: HTTPError) -> HTTPResponse:
    """Bottle found no route for a request (or, for 500, failed itself)."""
    allow = _allow(error.headers.get("Allow"))
    if allow and request.method == "OPTIONS":
        return answer.nothing(Allow=allow)
    if error.status_code not in ROUTING:
        return _problem_of_fault(error.exception or error)
    code, title = ROUTING[error.status_code]
    return answer.problem(error.status_code, code, title, title.lower(), headers={"Allow": allow} if allow else {})


def _allow(found: str | None) -> str:
    """The methods of a route for Allow: HEAD goes with GET, unless it is a route of its own, which refuses it."""
    methods = set(found.split(",")) if found else set()
    methods ^= {"HEAD"} if methods & {"GET", "HEAD"} else set()
    return ",".join(sorted(methods))


def _is_utf8(path: str) -> bool:
    """Whether a WSGI path, which holds bytes as Latin-1, is UTF-8."""
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return True


app = make_app()
lambda_handler = LambdaHandler(app)
