"""Copy a file line by line through a new queue service: `make copy`, `make copy FILE=notes.txt`.

Start the service on a free port with a database in a new directory, copy FILE (default: a source file of this Python),
compare, and stop the service. Exit with 0 only if the copy is identical.
"""

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

TREE = Path(__file__).resolve().parent.parent
STARTS_WITHIN = 20  # seconds
STOPS_WITHIN = 40  # seconds: a little more than gunicorn's graceful timeout


def main(arguments: list[str]) -> int:
    source = Path(arguments[0] if arguments else sysconfig.get_path("stdlib") + "/_pydecimal.py").resolve()
    with tempfile.TemporaryDirectory(prefix="queue-demo-") as scratch:
        copy = Path(scratch, "copy")
        with service(Path(scratch)) as url:
            print(f"A queue service answers at {url}, its messages on disk in {scratch}.")
            print(f"$ python -m clients.copy_file {source} {copy} --url {url}", flush=True)
            start = time.monotonic()
            command = [sys.executable, "-m", "clients.copy_file", str(source), str(copy), "--url", url]
            failed = subprocess.run(command).returncode
            seconds = time.monotonic() - start
        if failed:
            return failed  # the command printed the reason
        sent, came = source.read_bytes(), copy.read_bytes()
    if sent != came:
        print(f"The copy differs: {len(sent):,} bytes went in, {len(came):,} came out.", file=sys.stderr)
        return 1
    lines = len(sent.splitlines())
    print(f"{lines:,} lines, {len(sent):,} bytes, in {seconds:.1f} s: the copy is identical.")
    print("The service has stopped and its files are deleted.")
    return 0


@contextmanager
def service(directory: Path) -> Iterator[str]:
    """Run a service on a free port, with its files in the directory; yield its URL once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = directory / "service.log"
    environment = os.environ | {"PORT": str(port), "QUEUE_DATABASE_URL": f"sqlite:///{directory}/queue.db"}
    command = [sys.executable, "-m", "gunicorn", "handler:app"]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=TREE, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        if not answers(f"{url}/health", server):
            sys.exit(f"{log.read_text(errors='replace')}\nThe service did not start; its log is above.")
        yield url
    finally:
        server.terminate()
        server.wait(STOPS_WITHIN)


def answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Return True once the URL answers 200; False if the server ends or the time is up before that."""
    deadline = time.monotonic() + STARTS_WITHIN
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=5):
                return True
        except OSError:  # refused, or an HTTP error: not ready yet
            time.sleep(0.05)
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
