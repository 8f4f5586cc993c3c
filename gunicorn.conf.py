"""Server settings of gunicorn, each with its reason."""

import ctypes
import gc
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from gunicorn import util

from settings import BadSetting, Settings, unknown_variables
from web.access.tokens import BadTokens, Tokens
from web.observability import service_log
from web.observability.shared_counters import SharedCounters
from web.server import startup
from web.server.gunicorn_errors import write_problem

try:
    _settings = Settings.from_env()
except BadSetting as fault:
    sys.exit(f"queue_service: {fault}")

_FILES = 20_000  # open files of a worker

# A worker that runs out of file descriptors dies; clients and the threads' database connections use them.
_least, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
_files = max(_least, _FILES if _most == resource.RLIM_INFINITY else min(_FILES, _most))
resource.setrlimit(resource.RLIMIT_NOFILE, (_files, _most))

wsgi_app = "handler:app"
bind = _settings.bind
workers = _settings.workers
worker_class = "web.server.worker.Worker"
http_parser = "python"  # an installed C parser would apply other rules
threads = _settings.threads
worker_connections = max(threads + 10, _files - 3 * threads - 100)  # open; a new one beyond them closes idle ones
_readers = worker_connections * 3 // 4  # that may wait; other clients need connections too
keepalive = _settings.keep_alive  # s between two requests of a connection; idle ones count as worker_connections too
graceful_timeout = 25  # s for running requests at a stop; waiting reads end at once, so only slow clients need it
timeout = 30  # s without a worker's heartbeat until the master kills it; no limit on a request
limit_request_line = 8190  # bytes
forwarder_headers = ""  # else a SCRIPT_NAME header from this machine moves every route
secure_scheme_headers: dict[str, str] = {}  # the service does not depend on the scheme …
forwarded_allow_ips = "*"  # … so gunicorn need not check these headers' sender at each request
control_socket_disable = True  # the service does not use this admin socket
preload_app = False  # SQLite's connections must not cross a fork
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # the heartbeat file must not wait for a disk
accesslog = None  # gunicorn's line would cost more than the request
logger_class = service_log.logger_class(_settings.log)

util.write_error = write_problem

_shared_counters = SharedCounters()  # every worker adds to them, /metrics returns them
_MMAP_FROM = 1024 * 1024  # bytes


def on_starting(server: Any) -> None:
    """Exit with one sentence if the service would be open to anyone, or could not store messages."""
    if not (_settings.has_tokens or _settings.allow_anonymous or _settings.is_private):
        sys.exit(f"queue_service: {startup.open_address(f'QUEUE_HOST={_settings.host}')}")
    if _settings.has_tokens:
        try:
            Tokens(_settings).load()
        except BadTokens as fault:
            sys.exit(f"queue_service: {fault}")
    _try_database()
    for sentence in unknown_variables():
        server.log.warning("%s", sentence)
    if not _settings.inherits_socket and (conflict := startup.port_conflict(_settings, server.log.warning)):
        sys.exit(f"queue_service: {conflict}")


def when_ready(server: Any) -> None:
    if (sentence := startup.open_listener(_settings, server.LISTENERS)) is not None:
        sys.exit(f"queue_service: {sentence}")
    server.log.info("%s", startup.summary(_settings, str(server.LISTENERS[0]), _readers * workers))


def pre_fork(server: Any, worker: Any) -> None:
    worker.counters = _shared_counters.take()


def child_exit(server: Any, worker: Any) -> None:
    """Free the worker's counters. The master calls this however the worker ended."""
    worker.counters.free()


def post_fork(server: Any, worker: Any) -> None:
    """Let SIGTERM stop a worker that has not installed its own signal handlers.

    Until then it has the master's handlers, which only record the signal, so the worker would not stop.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def post_worker_init(worker: Any) -> None:
    """Open the store before the first request."""
    _return_large_blocks()
    try:
        worker.wsgi.counters, worker.wsgi.scheduler = worker.counters, worker.loop
        worker.wsgi.pollers = _readers
        store = worker.wsgi.unrestricted_store
    except Exception as fault:
        # The master could open the database, so this may be temporary: it starts another worker.
        worker.log.error("queue_service: %s", fault)
        time.sleep(1)
        sys.exit(1)
    store.on_failure(lambda: os.kill(os.getpid(), signal.SIGTERM))  # the master starts a fresh worker
    gc.freeze()  # a collection that included all modules would stop the loop for 20 ms


def worker_exit(server: Any, worker: Any) -> None:
    """Close the store: the last process that closes it checkpoints the log into the database."""
    if getattr(worker, "wsgi", None) is not None:  # not set if the application failed to load
        worker.wsgi.close()


def _return_large_blocks() -> None:
    """Return the memory of large bodies and replies to the system after use, because glibc would keep it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(ctypes.c_int(-3), ctypes.c_int(_MMAP_FROM))  # M_MMAP_THRESHOLD


def _try_database() -> None:
    """Exit if the database cannot be used. A child process tries it, because SQLite state must not cross the fork."""
    child = os.fork()
    if child == 0:
        from storage import open_store
        from storage.errors import Busy, UnusableDatabase

        try:
            open_store(_settings.database_url).close()
        except UnusableDatabase as fault:
            print(f"queue_service: QUEUE_DATABASE_URL: {fault}", file=sys.stderr, flush=True)
            os._exit(1)
        except Busy:  # another process holds the lock: a worker will wait for it
            pass
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
