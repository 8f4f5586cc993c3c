"""Real PostgreSQL for tests: private servers on the loopback, a standby, PgBouncer; and HAProxy before several nodes.

All files are in new directories under TMPDIR until the end of the `with`. PostgreSQL and PgBouncer refuse to run as
root, so root's tests run them as another user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from tests.support.live import LiveServer, await_true, free_port
from tests.support.programs import postgres_program, program

ADMIN = "postgres"  # the superuser
ROLE = "queue"  # the role of the service: owns its database, and nothing else
STANDBY = "standby"  # its name at its primary
STOPS_WITHIN = 30.0  # seconds


class Daemon:
    """A program that serves a loopback port until it is stopped or killed, and can be restarted."""

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="queue-test-"))
        self._process: subprocess.Popen[bytes] | None = None
        if (user := _another_user()) is not None:
            shutil.chown(self.directory, user)

    @property
    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not running"
        return self._process

    def start(self) -> None:
        """Start it and wait until it answers. Raises AssertionError, with its log, if it ends or is late."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                user=_another_user(),
                group=_group(),
                extra_groups=[] if _another_user() else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def answers() -> bool:
            assert self.running.poll() is None, f"{self.command[0]} ended:\n{self.log()}"
            return self.answers

        await_true(answers)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and wait."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STOPS_WITHIN)
            self._process = None

    def log(self) -> str:
        """Return the end of its log."""
        return (self.directory / "log").read_text(errors="replace")[-10_000:]

    def run(self, name: str, *arguments: str) -> str:
        """Run a program of PostgreSQL to its end, as the daemon's user; return its output.

        Raises AssertionError if it failed.
        """
        done = subprocess.run(
            [postgres_program(name), *arguments],
            cwd=self.directory,
            user=_another_user(),
            group=_group(),
            extra_groups=[] if _another_user() else None,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{name} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *rest: object) -> None:
        if kind is not None:
            print(self.log())
        try:
            self.stop(signal.SIGINT)
        finally:
            shutil.rmtree(self.directory)


class Postgres(Daemon):
    """A PostgreSQL server with default durability, unless `fast`, for tests that do not crash it."""

    def __init__(self, *, fast: bool = False, options: Sequence[str] = ()) -> None:
        super().__init__()
        self.data = self.directory / "data"
        self._options = [*options, *(["fsync=off", "full_page_writes=off"] if fast else [])]

    @property
    def command(self) -> list[str]:
        options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "shared_buffers=64MB",
            "max_connections=200",
            "max_wal_senders=4",
            "recovery_init_sync_method=syncfs",  # the default, file by file, takes seconds
            *self._options,
        ]
        return [postgres_program("postgres"), "-D", str(self.data), *(f"--{option}" for option in options)]

    @property
    def answers(self) -> bool:
        try:
            self.run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        except AssertionError:
            return False
        return True

    def start(self) -> None:
        """Start the server, and create a cluster if there is none yet."""
        new = not self.data.exists()
        if new:
            self.run(
                "initdb", "-D", str(self.data), "-U", ADMIN, "-E", "UTF8", "--locale=C", "-A", "trust", "--no-sync"
            )
        super().start()
        if new:
            self.sql(f"CREATE ROLE {ROLE} LOGIN")

    def restart_at_once(self) -> None:
        """Restart like `pg_ctl restart -m immediate`: without a checkpoint, and with recovery."""
        self.stop(signal.SIGQUIT)
        self.start()

    def kill(self) -> None:
        """Kill all its processes, like SIGKILL or a machine failure."""
        children = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children").read_text().split()
        self.running.kill()
        self.running.wait()
        self._process = None
        for pid in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await_true(lambda: not any(map(_is_alive, children)))  # otherwise it could not be started again

    def follow(self, primary: Postgres) -> None:
        """Make it the standby of `primary`, which from now on acknowledges only what is on this disk too.

        The server's own data is deleted.
        """
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={primary.port} user={ADMIN} application_name={STANDBY}"
        self.run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-c", "fast", "--no-sync")
        self.start()
        self._wait_for("")  # as a primary it has no standby
        primary._wait_for(STANDBY)
        await_true(lambda: primary.sql("SELECT sync_state FROM pg_stat_replication") == "sync\n")

    def promote(self) -> None:
        """Promote a standby to a primary, which accepts writes."""
        assert self.sql("SELECT pg_promote()") == "t\n"

    def terminate_connections(self, database: str) -> int:
        """End connections like pg_terminate_backend or a failing network; return their number."""
        ended = self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        return len(ended.splitlines())

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self.sql(f'CREATE DATABASE "{name}" OWNER {ROLE}')
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser; return a line for each row, columns separated by |."""
        at = ["-h", "127.0.0.1", "-p", str(self.port), "-U", ADMIN, "-d", database]
        return self.run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *at, "-c", statement)

    def _wait_for(self, standby: str) -> None:
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        self.sql("SELECT pg_reload_conf()")


def url_of_both(servers: Sequence[Postgres], database: str) -> str:
    """Return a URL that connects to the server that accepts writes."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://{ROLE}@{hosts}/{database}?target_session_attrs=read-write"


class PgBouncer(Daemon):
    """A connection pooler in transaction mode before a PostgreSQL: a session lasts only one transaction."""

    def __init__(self, upstream: Postgres, connections: int = 10) -> None:
        super().__init__()
        users = self.directory / "users"
        users.write_text(f'"{ROLE}" ""\n')
        (self.directory / "pgbouncer.ini").write_text(
            f"""
            [databases]
            * = host=127.0.0.1 port={upstream.port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = trust
            auth_file = {users}
            admin_users = {ROLE}
            pool_mode = transaction
            default_pool_size = {connections}
            max_client_conn = 500
            """.replace("            ", "")
        )

    @property
    def command(self) -> list[str]:
        return [program("pgbouncer"), str(self.directory / "pgbouncer.ini")]

    @property
    def answers(self) -> bool:
        try:
            self.run("psql", "-qAtX", "-d", self.url("pgbouncer"), "-c", "SHOW VERSION")
        except AssertionError:
            return False
        return True

    def url(self, database: str) -> str:
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/{database}"


class Balancer(Daemon):
    """HAProxy before several nodes of the service: it sends a connection's requests to the ready ones in turn."""

    def __init__(self, nodes: Sequence[LiveServer]) -> None:
        super().__init__()
        servers = "\n".join(
            f"server node{number} 127.0.0.1:{node.port} check inter 500ms" for number, node in enumerate(nodes)
        )
        (self.directory / "haproxy.cfg").write_text(
            f"""
            defaults
            mode http
            timeout connect 2s
            timeout client 60s
            timeout server 60s
            retries 3
            option redispatch
            frontend clients
            bind 127.0.0.1:{self.port}
            default_backend nodes
            backend nodes
            balance roundrobin
            option httpchk GET /health
            {servers}
            """.replace("            ", "")
        )

    @property
    def command(self) -> list[str]:
        return [program("haproxy"), "-db", "-f", str(self.directory / "haproxy.cfg")]

    @property
    def answers(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:  # also 503: it has found no node yet
            return False


def _another_user() -> str | None:
    """Return the user that root runs servers as: PostgreSQL's own, which its package creates."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def _group() -> int | None:
    user = _another_user()
    return None if user is None else pwd.getpwnam(user).pw_gid


def _is_alive(pid: str) -> bool:
    """Return whether the process is alive; a zombie is not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
