"""The service: gunicorn serves `handler:app`. Each route parses its request, calls the store and returns the response.

doors/wire.py reads requests; storage/model.py specifies what the store does with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request

from doors import answer, auth, batches, metrics, openapi, origin, page, parse, watch, wire
from doors.budget import Budget
from doors.counts import Counts, Slot
from doors.granted import GrantedStore
from doors.problems import problem_of, problem_of_routing
from doors.serverless import LambdaHandler
from doors.tokens import Tokens
from settings import Settings
from storage import errors, open_store
from storage.bells import Bell
from storage.model import Engine, Once, Store, check_queue_name


class Application:
    """The WSGI application. It opens its store at the first use, in the process that uses it."""

    def __init__(self, settings: Settings | None = None, store: Engine | None = None) -> None:
        self._settings = settings
        self._store = store
        self._opening = threading.Lock()
        self.bell: Bell | None = None  # gunicorn.conf.py sets one that other processes write to
        self.bottle = _mount_routes(self)
        if store is not None:
            self._attach(store)

    def __call__(self, environ: wire.Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        # Bottle would run /messages%ff and /queues/a/messages%0a as a read, which removes a message.
        if "//" in path or "\n" in path or not _is_utf8(path):
            environ["PATH_INFO"] = "/no/such/route"
        return self._budget.run(lambda: self._watch(self.bottle, environ, start_response))

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_env()
        return self._settings

    @cached_property
    def access(self) -> auth.Access | None:
        """Return the check of tokens, or None if the operator has set none."""
        return auth.Access(Tokens(self.settings)) if self.settings.has_tokens else None

    @cached_property
    def slot(self) -> Slot:
        """Return where this process counts. gunicorn.conf.py sets one in shared memory."""
        return Counts(slots=1).take()

    @property
    def store(self) -> Store:
        """Return the store for the current request, limited to what its token allows."""
        if self.access is None:
            return self.whole_store
        return GrantedStore(self.whole_store, request.environ.get(wire.GRANT))

    @property
    def whole_store(self) -> Engine:
        if self._store is None:
            with self._opening:
                if self._store is None:
                    store = open_store(self.settings.database_url, pollers=self.settings.pollers, bell=self.bell)
                    self._store = self._attach(store)
        return self._store

    def _attach(self, store: Engine) -> Engine:
        store.observe(self.slot)
        store.limit_reads(self._budget)
        return store

    @cached_property
    def _watch(self) -> watch.Watch:
        return watch.Watch(self.slot, self.bottle.routes, watch.access_log(self.settings.access_log))

    @cached_property
    def _budget(self) -> Budget:
        return Budget(self.settings.max_body)

    def body(self) -> bytes:
        """Return the body of the current request. Raises as Budget.read_body."""
        return self._budget.read_body(request.environ)

    def once(self, body: bytes = b"") -> Once | None:
        """Return the Idempotency-Key of the current request, or None. Raises InvalidInput."""
        return wire.read_once(request.environ, body)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def make_app(settings: Settings | None = None, store: Engine | None = None) -> Application:
    """Return a new application. At its first use it reads settings from the environment, and opens their store."""
    return Application(settings, store)


def _mount_routes(service: Application) -> Bottle:
    app = Bottle()
    app.install(_answer_faults)
    app.install(auth.Guard(lambda: service.access))
    app.default_error_handler = problem_of_routing
    app.add_hook("before_request", lambda: _refuse_strangers(service.settings))
    _mount_messages(app, service)
    _mount_ids(app, service)  # before receipts, whose pattern matches ids too
    _mount_receipts(app, service)
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
        messages, batch = batches.messages(request.environ, content := service.body())
        sent = service.store.send(check_queue_name(queue), messages, service.once(content))
        return answer.ids(sent) if batch else answer.stored(sent, messages[0])

    @app.get("/messages")
    @app.get("/queues/<queue>/messages")
    def receive(queue: str | None = None) -> HTTPResponse:
        ask, batch = parse.ask(request.environ, queue)
        messages = service.store.receive(ask, service.once(), wire.presence(request.environ))
        return answer.delivery(messages, ask, batch, wire.wanted(request.environ, wire.NDJSON, wire.RUNS))

    @app.route("/messages", method="HEAD")
    @app.route("/queues/<queue>/messages", method="HEAD")
    def refuse_head(**_: str) -> HTTPResponse:
        raise HTTPError(405, Allow="GET,HEAD,POST")  # else Bottle runs GET, which removes a message

    @app.post("/transactions")
    def transact() -> HTTPResponse:
        parse.nothing(request.environ)
        steps = parse.transaction(request.environ, content := service.body())
        done = service.store.transact(*steps, service.once(content), wire.presence(request.environ))
        return answer.transacted(done, steps.receive, wire.wanted(request.environ, wire.RUNS))


def _mount_receipts(app: Bottle, service: Application) -> None:
    @app.delete("/messages/<receipt>")
    @app.delete("/queues/<queue>/messages/<receipt>")
    def settle(receipt: str, queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        service.store.settle(receipt, queue, service.once())
        return answer.nothing()

    @app.route("/messages/<receipt>", method="PATCH")
    @app.route("/queues/<queue>/messages/<receipt>", method="PATCH")
    def change_lease(receipt: str, queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        change, once = parse.lease_change(request.environ, content := service.body()), service.once(content)
        if change.lease:
            return answer.extended(service.store.extend(receipt, change.lease, queue, once))
        if change.dead:
            service.store.reject(receipt, change.reason, queue, once)
        else:
            service.store.release(receipt, change.delay, queue, once, counted=change.counted)
        return answer.nothing()

    @app.post("/messages/ack")
    @app.post("/queues/<queue>/messages/ack")
    def ack(queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        receipts = parse.receipts(request.environ, content := service.body())
        result = service.store.ack(receipts, parse.queue_or_none(queue), service.once(content))
        return answer.value(result._asdict())

    @app.post("/messages/extend")
    @app.post("/queues/<queue>/messages/extend")
    def extend(queue: str | None = None) -> HTTPResponse:
        parse.nothing(request.environ)
        receipts, lease = parse.extension(request.environ, content := service.body())
        named = parse.queue_or_none(queue)
        return answer.extended_many(service.store.extend_many(receipts, lease, named, service.once(content)))


def _mount_ids(app: Bottle, service: Application) -> None:
    @app.get("/queues/<queue>/messages/<id:re:[0-9]+>")
    def look(queue: str, id: str) -> HTTPResponse:
        parse.nothing(request.environ)
        message = service.store.message(queue, parse.message_id(id))
        return answer.looked(message)

    @app.delete("/queues/<queue>/messages/<id:re:[0-9]+>")
    def delete_message(queue: str, id: str) -> HTTPResponse:
        parse.nothing(request.environ)
        service.store.delete_message(queue, parse.message_id(id), service.once())
        return answer.nothing()

    @app.route("/queues/<queue>/messages/<id:re:[0-9]+>", method="PATCH")
    def change_message(queue: str, id: str) -> HTTPResponse:
        parse.nothing(request.environ)
        change, once = parse.message_change(request.environ, content := service.body()), service.once(content)
        if change.delay is None:
            service.store.dead_letter(queue, parse.message_id(id), change.reason, once)
        else:
            service.store.reschedule(queue, parse.message_id(id), change.delay, once)
        return answer.nothing()


def _mount_queues(app: Bottle, service: Application) -> None:
    @app.get("/queues")
    def queues() -> HTTPResponse:
        page = parse.page(request.environ)
        return answer.listing(service.store.queues(*page), page.limit)

    @app.get("/queues/<queue>")
    def describe(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        return answer.description(service.store.queue(queue))

    @app.put("/queues/<queue>")
    def configure(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        changes = parse.settings(request.environ, content := service.body())
        version, once = parse.if_match(request.environ), service.once(content)
        return answer.description(service.store.configure(check_queue_name(queue), changes, version, once))

    @app.delete("/queues/<queue>")
    def delete_queue(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        service.store.delete_queue(queue, service.once())
        return answer.nothing()

    @app.get("/queues/<queue>/peek")
    def peek(queue: str) -> HTTPResponse:
        messages = service.store.peek(check_queue_name(queue), **parse.peek(request.environ)._asdict())
        return answer.peeked(messages, wire.wanted(request.environ, wire.NDJSON))

    @app.post("/queues/<queue>/purge")
    def purge(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        parse.empty(request.environ, content := service.body())
        return answer.value({"purged": service.store.purge(queue, service.once(content))})

    @app.post("/queues/<queue>/redrive")
    def redrive(queue: str) -> HTTPResponse:
        parse.nothing(request.environ)
        which = parse.redrive(request.environ, content := service.body())
        once = service.once(content)
        return answer.value({"redriven": service.store.redrive(queue, **which._asdict(), once=once)})


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
        raise problem_of(fault)
    if (page := origin.page_instead(request.environ)) is not None:
        raise answer.see_other(page)


def _answer_faults(route: Callable[..., HTTPResponse]) -> Callable[..., HTTPResponse]:
    """Wrap a route: return the response that the table of problems has for what it raises."""

    def answered(*args: Any, **kwargs: Any) -> HTTPResponse:
        try:
            return route(*args, **kwargs)
        except HTTPResponse:
            raise  # Bottle's own responses
        except errors.TooManyPollers:
            return answer.nothing(Retry_After=str(answer.RETRY_AFTER))
        except Exception as fault:
            return problem_of(fault)

    return answered


def _is_utf8(path: str) -> bool:
    """Return whether a WSGI path (bytes as Latin-1) is UTF-8."""
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return True


app = make_app()
lambda_handler = LambdaHandler(app)
