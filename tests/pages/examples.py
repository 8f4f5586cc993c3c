"""Run the curl lines of web/pages/examples.json. `python -m tests.pages.examples` records the replies there."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from tests.support.live import LiveServer
from web.pages.examples import FILE, Example, recorded

_SENT = datetime(2026, 1, 1, 9, tzinfo=UTC)
_RECEIPT = re.compile(r"([\w.-]+~[\d~]+)~[0-9a-f]+")
_SECRET = "a-secret-of-the-operator"
_MEASURED = {  # what the machine and the moment decide
    "database_bytes": 139264, "log_bytes": 65952, "disk_free_bytes": 41932537856, "requests": 24,
    "commits": 17, "commit_seconds": 0.042,
}  # fmt: skip


def run_all() -> list[Example]:
    """Run the lines in order, and return the replies. What each run would return otherwise is the same in all."""
    receipts: dict[str, str] = {}  # recorded → real
    with LiveServer() as server, LiveServer({"QUEUE_TOKENS": f"shop:{_SECRET}:send,receive:*"}) as guarded:
        return [
            _run(example, guarded if example.about == "authentication" else server, receipts) for example in recorded()
        ]


def _run(example: Example, server: LiveServer, receipts: dict[str, str]) -> Example:
    line = _RECEIPT.sub(lambda found: receipts.get(found[0], found[0]), example.curl)
    line = line.replace("localhost:5000", server.url.removeprefix("http://"))
    line = line.replace("curl ", "curl -sS -w '%{stderr}%{http_code}' ", 1)
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    lease = re.search(r"lease\W+(\d+)", line)
    ends = _SENT + timedelta(seconds=int(lease[1]) if lease else 0)

    def replaced(found: re.Match[str]) -> str:
        fixed = f"{found[1]}~{sha256(found[1].encode()).hexdigest()[:16]}"
        receipts[fixed] = found[0]
        return fixed

    reply = ran.stdout.removesuffix("\n").replace(server.url.removeprefix("http://"), "localhost:5000")
    reply = _RECEIPT.sub(replaced, reply)
    reply = re.sub(r'("\w+_at": )"[^"]+"', rf'\1"{_moment(_SENT)}"', reply)
    reply = re.sub(r'("leased_until": )"[^"]+"', rf'\1"{_moment(ends)}"', reply)
    reply = re.sub(r'("ready": [1-9].*?"oldest_age": )[\d.]+', r"\g<1>0.25", reply)
    for name, value in _MEASURED.items():
        reply = re.sub(rf'("{name}": )[\d.]+', rf"\g<1>{value}", reply)
    return example._replace(status=int(ran.stderr), reply=reply)


def _moment(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    FILE.write_text(json.dumps([example._asdict() for example in run_all()], indent=1, ensure_ascii=False) + "\n")
