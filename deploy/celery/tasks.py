"""A Celery application on the queue, through the SQS endpoint. The profile `celery` of compose.yaml runs it."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery

app: Any = Celery("tasks", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(
    task_acks_late=True,  # so that another worker does the tasks of one that dies
    worker_enable_remote_control=False,  # else each worker creates a queue for control messages
    broker_connection_retry_on_startup=True,
    broker_transport_options={"region": "us-east-1", "is_secure": False, "wait_time_seconds": 20},
)
logger = logging.getLogger(__name__)


@app.task  # type: ignore[untyped-decorator]
def greet(name: str) -> None:
    logger.info("Hello, %s", name)
