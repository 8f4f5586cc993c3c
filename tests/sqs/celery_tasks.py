"""A Celery application on the SQS endpoint. Workers of test_clients.py run it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery

TRACES = Path(os.environ["TRACES"])

app = Celery("tests", broker=f"sqs://any:any@{os.environ['ENDPOINT'].removeprefix('http://')}")
app.conf.update(
    task_default_queue=os.environ["QUEUE"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "region": "us-east-1",
        "is_secure": False,
        "visibility_timeout": 5,
        "wait_time_seconds": 2,
        "polling_interval": 0.1,
    },
)


@app.task(bind=True, max_retries=3)  # type: ignore[untyped-decorator]
def work(self: Any, number: int) -> None:
    """Leave a trace; every tenth task does so at its first retry."""
    if number % 10 == 0 and self.request.retries == 0:
        raise self.retry(countdown=1)
    with (TRACES / str(number)).open("a") as trace:
        trace.write(f"{self.request.retries}\n")
