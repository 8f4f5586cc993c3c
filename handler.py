"""The service: gunicorn serves `handler:app`. Each route parses its request, calls the store and returns the response.

web/native/request.py reads requests; storage/store.py specifies what the store does with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request

from settings import Settings
from storage import errors, open_store
from storage.model import IdempotencyKey
from storage.store import Engine, Store
from storage.validation import check_queue_name
from storage.wakeup_pipes import WakeupPipe
from web.access import authentication, csrf
from web.access.authorization import AuthorizedStore
from web.access.tokens import Tokens
from web.native import batches, request_parsing, responses
from web.native.budget import BodyBudgets
from web.native.problems import problem_of, problem_of_routing
from web.native.request import GRANT, NDJSON, RUNS, Environ, connection_check, read_idempotency_key, wanted
from web.observability import access_log, metrics
from web.observability.shared_counters import SharedCounters, WorkerCounters
from web.pages import openapi, page
from web.server.serverless import LambdaHandler


class Application:
    """The WSGI application. It opens its store at the first use, in the process that uses it."""

    def __init__(self, settings: Settings | None = None, store: Engine | None = None) -> None:
        self._settings = settings
        self._store = store
        self._opening = threading.Lock()
        self.wakeup_pipe: WakeupPipe | None = None  # gunicorn.conf.py sets one that other processes write to
        self.bottle = _mount_routes(self)
        if store is not None:
            self._attach(store)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        # Bottle would run /messages%ff and /queues/a/messages%0a as a read, which removes a message.
        if "//" in path or "\n" in path or not _is_utf8(path):
            environ["PATH_INFO"] = "/no/such/route"
        return self._budget.run(lambda: self._recorder(self.bottle, environ, start_response))

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_env()
        return self._settings

    @cached_property
    def access(self) -> authentication.Access | None:
        """Return the check of tokens, or None if the operator has set none."""
        return authentication.Access(Tokens(self.settings)) if self.settings.has_tokens else None

    @cached_property
    def counters(self) -> WorkerCounters:
        """Return where this process counts. gunicorn.conf.py sets one in shared memory."""
        return SharedCounters(slots=1).take()

    @property
    def store(self) -> Store:
        """Return the store for the current request, limited to what its token allows."""
        if self.access is None:
            return self.unrestricted_store
        return AuthorizedStore(self.unrestricted_store, request.environ.get(GRANT))

    @property
    def unrestricted_store(self) -> Engine:
        if self._store is None:
            with self._opening:
                if self._store is None:
                    store = open_store(
                        self.settings.database_url, pollers=self.settings.pollers, wakeup_pipe=self.wakeup_pipe
                    )
                    self._store = self._attach(store)
        return self._store

    def _attach(self, store: Engine) -> Engine:
        store.observe(self.counters)
        store.limit_reads(self._budget)
        return store

    @cached_property
    def _recorder(self) -> access_log.RequestRecorder:
        return access_log.RequestRecorder(
            self.counters, self.bottle.routes, access_log.log_writer(self.settings.access_log)
        )

    @cached_property
    def _budget(self) -> BodyBudgets:
        return BodyBudgets(self.settings.max_body)

    def body(self) -> bytes:
        """Return the body of the current request. Raises as Budget.read_body."""
        return self._budget.read_body(request.environ)

    def once(self, body: bytes = b"") -> IdempotencyKey | None:
        """Return the Idempotency-Key of the current request, or None. Raises InvalidInput."""
        return read_idempotency_key(request.environ, body)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def make_app(settings: Settings | None = None, store: Engine | None = None) -> Application:
    """Return a new application. At its first use it reads settings from the environment, and opens their store."""
    return Application(settings, store)


def _mount_routes(service: Application) -> Bottle:
    app = Bottle()
    app.install(_answer_faults)
    app.install(authentication.Guard(lambda: service.access))
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
        request_parsing.nothing(request.environ)
        messages, batch = batches.messages(request.environ, content := service.body())
        sent = service.store.send(check_queue_name(queue), messages, service.once(content))
        return responses.ids(sent) if batch else responses.stored(sent, messages[0])

    @app.get("/messages")
    @app.get("/queues/<queue>/messages")
    def receive(queue: str | None = None) -> HTTPResponse:
        ask, batch = request_parsing.ask(request.environ, queue)
        messages = service.store.receive(ask, service.once(), connection_check(request.environ))
        return responses.delivery(messages, ask, batch, wanted(request.environ, NDJSON, RUNS))

    @app.route("/messages", method="HEAD")
    @app.route("/queues/<queue>/messages", method="HEAD")
    def refuse_head(**_: str) -> HTTPResponse:
        raise HTTPError(405, Allow="GET,HEAD,POST")  # else Bottle runs GET, which removes a message

    @app.post("/transactions")
    def transact() -> HTTPResponse:
        request_parsing.nothing(request.environ)
        steps = request_parsing.transaction(request.environ, content := service.body())
        done = service.store.transact(*steps, service.once(content), connection_check(request.environ))
        return responses.transacted(done, steps.receive, wanted(request.environ, RUNS))


def _mount_receipts(app: Bottle, service: Application) -> None:
    @app.delete("/messages/<receipt>")
    @app.delete("/queues/<queue>/messages/<receipt>")
    def settle(receipt: str, queue: str | None = None) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        service.store.settle(receipt, queue, service.once())
        return responses.nothing()

    @app.route("/messages/<receipt>", method="PATCH")
    @app.route("/queues/<queue>/messages/<receipt>", method="PATCH")
    def change_lease(receipt: str, queue: str | None = None) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        change, once = request_parsing.lease_change(request.environ, content := service.body()), service.once(content)
        if change.lease:
            return responses.extended(service.store.extend(receipt, change.lease, queue, once))
        if change.dead:
            service.store.reject(receipt, change.reason, queue, once)
        else:
            service.store.release(receipt, change.delay, queue, once, counted=change.counted)
        return responses.nothing()

    @app.post("/messages/ack")
    @app.post("/queues/<queue>/messages/ack")
    def ack(queue: str | None = None) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        receipts = request_parsing.receipts(request.environ, content := service.body())
        result = service.store.ack(receipts, request_parsing.queue_or_none(queue), service.once(content))
        return responses.value(result._asdict())

    @app.post("/messages/extend")
    @app.post("/queues/<queue>/messages/extend")
    def extend(queue: str | None = None) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        receipts, lease = request_parsing.extension(request.environ, content := service.body())
        named = request_parsing.queue_or_none(queue)
        return responses.extended_many(service.store.extend_many(receipts, lease, named, service.once(content)))


def _mount_ids(app: Bottle, service: Application) -> None:
    @app.get("/queues/<queue>/messages/<id:re:[0-9]+>")
    def look(queue: str, id: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        message = service.store.message(queue, request_parsing.message_id(id))
        return responses.looked(message)

    @app.delete("/queues/<queue>/messages/<id:re:[0-9]+>")
    def delete_message(queue: str, id: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        service.store.delete_message(queue, request_parsing.message_id(id), service.once())
        return responses.nothing()

    @app.route("/queues/<queue>/messages/<id:re:[0-9]+>", method="PATCH")
    def change_message(queue: str, id: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        change, once = request_parsing.message_change(request.environ, content := service.body()), service.once(content)
        if change.delay is None:
            service.store.dead_letter(queue, request_parsing.message_id(id), change.reason, once)
        else:
            service.store.reschedule(queue, request_parsing.message_id(id), change.delay, once)
        return responses.nothing()


def _mount_queues(app: Bottle, service: Application) -> None:
    @app.get("/queues")
    def queues() -> HTTPResponse:
        page = request_parsing.page(request.environ)
        return responses.listing(service.store.queues(*page), page.limit)

    @app.get("/queues/<queue>")
    def describe(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        return responses.description(service.store.queue(queue))

    @app.put("/queues/<queue>")
    def configure(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        changes = request_parsing.settings(request.environ, content := service.body())
        version, once = request_parsing.if_match(request.environ), service.once(content)
        return responses.description(service.store.configure(check_queue_name(queue), changes, version, once))

    @app.delete("/queues/<queue>")
    def delete_queue(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        service.store.delete_queue(queue, service.once())
        return responses.nothing()

    @app.get("/queues/<queue>/peek")
    def peek(queue: str) -> HTTPResponse:
        messages = service.store.peek(check_queue_name(queue), **request_parsing.peek(request.environ)._asdict())
        return responses.peeked(messages, wanted(request.environ, NDJSON))

    @app.post("/queues/<queue>/purge")
    def purge(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        request_parsing.empty(request.environ, content := service.body())
        return responses.value({"purged": service.store.purge(queue, service.once(content))})

    @app.post("/queues/<queue>/redrive")
    def redrive(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        which = request_parsing.redrive(request.environ, content := service.body())
        once = service.once(content)
        return responses.value({"redriven": service.store.redrive(queue, **which._asdict(), once=once)})


def _mount_operations(app: Bottle, service: Application) -> None:
    @app.get("/health")
    def health() -> HTTPResponse:
        return responses.value({"status": "alive"})

    @app.get("/ready")
    def ready() -> HTTPResponse:
        service.store.check_ready()
        return responses.value({"status": "ready"})


def _refuse_strangers(settings: Settings) -> None:
    fault = csrf.objection(request.environ, only_local_names=settings.trusts_loopback)
    if fault is not None:
        raise problem_of(fault)
    if (page := csrf.page_instead(request.environ)) is not None:
        raise responses.see_other(page)


def _answer_faults(route: Callable[..., HTTPResponse]) -> Callable[..., HTTPResponse]:
    """Wrap a route: return the response that the table of problems has for what it raises."""

    def answered(*args: Any, **kwargs: Any) -> HTTPResponse:
        try:
            return route(*args, **kwargs)
        except HTTPResponse:
            raise  # Bottle's own responses
        except errors.TooManyPollers:
            return responses.nothing(Retry_After=str(responses.RETRY_AFTER))
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
