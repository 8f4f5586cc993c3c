"""The service: gunicorn serves `handler:app`. Each route parses its request, calls the store and returns the response.

web/native/request.py reads requests; storage/store.py specifies what the store does with them.
"""

from __future__ import annotations

from bottle import Bottle, HTTPError, HTTPResponse, request

from settings import Settings
from storage.store import Engine
from storage.validation import check_queue_name
from web.native import batches, request_parsing, responses
from web.native.application import Application
from web.native.request import NDJSON, RUNS, connection_check, wanted
from web.observability import metrics, status
from web.pages import openapi, page
from web.server.serverless import LambdaHandler
from web.sqs import endpoint


def make_app(settings: Settings | None = None, store: Engine | None = None) -> Application:
    """Return a new application. At its first use it reads settings from the environment, and opens their store."""
    return Application(mount_routes, settings, store)


def mount_routes(app: Bottle, service: Application) -> None:
    _mount_messages(app, service)
    _mount_ids(app, service)  # before receipts, whose pattern matches ids too
    _mount_receipts(app, service)
    _mount_queues(app, service)
    _mount_operations(app, service)
    metrics.mount(app, service)
    status.mount(app, service)
    openapi.mount(app)
    page.mount(app)
    endpoint.mount(service)


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
        kind = wanted(request.environ, NDJSON, RUNS)
        return service.build(lambda: responses.delivery(messages, ask, batch, kind))

    @app.route("/messages", method="HEAD")
    @app.route("/queues/<queue>/messages", method="HEAD")
    def refuse_head(**_: str) -> HTTPResponse:
        raise HTTPError(405, Allow="GET,HEAD,POST")  # else Bottle runs GET, which removes a message

    @app.post("/transactions")
    def transact() -> HTTPResponse:
        request_parsing.nothing(request.environ)
        steps = request_parsing.transaction(request.environ, content := service.body())
        done = service.store.transact(*steps, service.once(content), connection_check(request.environ))
        kind = wanted(request.environ, RUNS)
        return service.build(lambda: responses.transacted(done, steps.receive, kind))


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
        ask = request_parsing.peek(request.environ)
        messages = service.store.peek(check_queue_name(queue), **ask._asdict())
        return responses.peeked(messages, ask, wanted(request.environ, NDJSON))

    @app.get("/queues/<queue>/reasons")
    def reasons(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        return responses.reasons(service.store.reasons(queue))

    @app.post("/queues/<queue>/purge")
    def purge(queue: str) -> HTTPResponse:
        request_parsing.nothing(request.environ)
        which = request_parsing.purge(request.environ, content := service.body())
        return responses.value({"purged": service.store.purge(queue, service.once(content), **which._asdict())})

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


app = make_app()
lambda_handler = LambdaHandler(app)
