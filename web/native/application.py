"""The WSGI application around the routes. It opens the store, reads bodies and maps errors to responses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from bottle import Bottle, HTTPError, request

from settings import Settings
from storage import errors, open_store
from storage.model import IdempotencyKey
from storage.scheduling import Scheduler, Threads
from storage.store import Engine, Store
from web.access import authentication, csrf
from web.access.authorization import AuthorizedStore
from web.access.tokens import Tokens
from web.native import responses
from web.native.budget import MemoryBudget
from web.native.problems import problem_of, problem_of_routing
from web.native.request import GRANT, Environ, read_idempotency_key
from web.native.responses import Response
from web.observability import access_log
from web.observability.access_log import Handler
from web.observability.shared_counters import SharedCounters, WorkerCounters

T = TypeVar("T")

POLLERS = 32  # readers that may wait at once, if each holds a thread


class Application:
    """A WSGI application of the routes that `mount` adds. It opens its store at first use, in this process."""

    def __init__(
        self,
        mount: Callable[[Bottle, Application], None],
        settings: Settings | None = None,
        store: Engine | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._opening = threading.Lock()
        self.scheduler: Scheduler = Threads()  # gunicorn.conf.py sets the worker's loop …
        self.pollers = POLLERS  # … and how many readers may wait in it
        self.bottle = Bottle()
        self.handler: Handler = self._run  # `mount` may put another before it, with routes of its own
        self.more_routes: list[Any] = []
        self.bottle.uninstall(True)  # no route needs its plugins
        self.bottle.install(authentication.Guard(lambda: self.access))
        mount(self.bottle, self)
        self._route = lru_cache(maxsize=256)(self._find_route)  # a client repeats its paths, except those of receipts
        if store is not None:
            self._attach(store)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        # Bottle would route /messages%ff and /queues/a/messages%0a to a read, which removes a message.
        if "//" in path or "\n" in path or not (path.isascii() or _is_utf8(path)):
            environ["PATH_INFO"] = "/no/such/route"
        return self.budget.run(environ, lambda: self._recorder(self.handler, environ, start_response))

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_env()
        return self._settings

    @property
    def routes(self) -> list[Any]:
        """Return all routes, for the log and the metrics."""
        return [*self.bottle.routes, *self.more_routes]

    @cached_property
    def _only_local_names(self) -> bool:
        return self.settings.trusts_loopback

    @cached_property
    def access(self) -> authentication.Access | None:
        """Return the check of tokens, or None if the operator has set no tokens."""
        return authentication.Access(Tokens(self.settings)) if self.settings.has_tokens else None

    @cached_property
    def counters(self) -> WorkerCounters:
        """Return the counters of this process. gunicorn.conf.py sets counters in shared memory instead."""
        return SharedCounters(slots=1).take()

    @property
    def store(self) -> Store:
        """Return the store for the current request, limited to what its token allows."""
        if self.access is None:
            return self.unrestricted_store
        return AuthorizedStore(self.unrestricted_store, request.environ.get(GRANT))

    @property
    def unrestricted_store(self) -> Engine:
        """Return the store without a token's limits; open it at the first use."""
        if self._store is None:
            with self._opening:
                if self._store is None:
                    store = open_store(self.settings.database_url, pollers=self.pollers, scheduler=self.scheduler)
                    self._store = self._attach(store)
        return self._store

    def _attach(self, store: Engine) -> Engine:
        store.observe(self.counters)
        store.limit_reads(self.budget)
        return store

    @cached_property
    def _recorder(self) -> access_log.RequestRecorder:
        return access_log.RequestRecorder(self.counters, self.routes, access_log.log_writer(self.settings.access_log))

    @cached_property
    def budget(self) -> MemoryBudget:
        return MemoryBudget(self.settings.max_body, self.scheduler)

    def _run(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Run the route of a request. Bottle's own code around it would take longer than most routes do."""
        if not environ["PATH_INFO"].isascii():
            environ["PATH_INFO"] = environ["PATH_INFO"].encode("latin-1").decode()
        request.bind(environ)
        try:
            reply = self._reply(environ)
        except Exception as fault:  # an error while the reply to another was built
            reply = problem_of(fault)
        start_response(reply.line, reply.fields)
        if not reply.body or environ["REQUEST_METHOD"] == "HEAD":
            return []
        return [reply.body] if isinstance(reply.body, bytes) else reply.body

    def _reply(self, environ: Environ) -> Response:
        try:
            fault = csrf.objection(environ, only_local_names=self._only_local_names)
            if fault is not None:
                return problem_of(fault)
            if (page := csrf.page_instead(environ)) is not None:
                return responses.see_other(page)
            route, named = self._route(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            environ["bottle.route"], environ["route.url_args"] = route, named
            reply: Response = route.call(**named)
            return reply
        except HTTPError as fault:  # no such route
            return problem_of_routing(fault)
        except errors.TooManyPollers:
            return responses.nothing({"Retry-After": str(responses.RETRY_AFTER)})
        except Exception as fault:
            return problem_of(fault)

    def _find_route(self, method: str, path: str) -> tuple[Any, dict[str, str]]:
        """Return a route and the named parts of the path. Raises HTTPError."""
        found: tuple[Any, dict[str, str]] = self.bottle.router.match({"REQUEST_METHOD": method, "PATH_INFO": path})
        return found

    def build(self, make: Callable[[], T]) -> T:
        """Return what `make` returns for a reply; call it in a thread if the reply may be long."""
        return self.scheduler.call(make) if self.scheduler.current().is_heavy else make()

    def resume(self, environ: Environ) -> None:
        """Continue with this request, after others have run in the same thread."""
        request.environ = environ
        self.budget.resume(environ)

    def body(self) -> bytes:
        """Return the body of the current request. Raises the same errors as MemoryBudget.read_body."""
        return self.budget.read_body(request.environ)

    def once(self, body: bytes = b"") -> IdempotencyKey | None:
        """Return the Idempotency-Key of the current request, or None. Raises InvalidInput."""
        return read_idempotency_key(request.environ, body)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def _is_utf8(path: str) -> bool:
    """Return whether a WSGI path (bytes as Latin-1) is UTF-8."""
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return True
