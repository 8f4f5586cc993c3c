"""Tags and permissions of queues. Both are only stored: permissions grant nothing, tokens do."""

from __future__ import annotations

import json
import re

from storage.model import Queue
from web.sqs.call import DONE, Call, Result, edit, required_list
from web.sqs.errors import invalid, invalid_value, missing
from web.sqs.names import arn_of
from web.sqs.parameters import Parameters
from web.sqs.queue_attributes import check_policy

MOST_TAGS = 50
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,80}")
_ACCOUNT = re.compile(r"[0-9]{12}")


def read(parameters: Parameters, name: str) -> dict[str, str]:
    """Return the tags of a request. Raises SqsError."""
    found = parameters.strings(name) or parameters.strings("Tags")
    for key, value in found.items():
        if not 1 <= len(key) <= 128:
            raise invalid_value("Tag keys must be between 1 and 128 characters in length.")
        if len(value) > 256:
            raise invalid_value("Tag values must be between 0 and 256 characters in length.")
        if key.lower().startswith("aws:"):
            raise invalid_value("aws: prefixed tag key names are not allowed for external use.")
    if len(found) > MOST_TAGS:
        raise invalid_value(f"Too many tags added: a queue has at most {MOST_TAGS}.")
    return found


def tag_queue(call: Call) -> Result:
    queue, added = call.queue, read(call.parameters, "Tags")
    if not added:
        call.store.settings(queue)
        raise missing("Tags")

    def change(found: Queue) -> dict[str, object]:
        tags = {**found.settings.tags, **added}
        if len(tags) > MOST_TAGS:
            raise invalid_value(f"Too many tags added for queue {queue}.")
        return {"tags": tags}

    edit(call.store, queue, change)
    return DONE


def untag_queue(call: Call) -> Result:
    removed = set(required_list(call, "TagKeys"))
    edit(
        call.store,
        call.queue,
        lambda found: {"tags": {key: value for key, value in found.settings.tags.items() if key not in removed}},
    )
    return DONE


def list_queue_tags(call: Call) -> Result:
    found = dict(call.store.settings(call.queue).tags)
    return {"Tags": found} if found else {}


def add_permission(call: Call, known_actions: frozenset[str]) -> Result:
    queue, label = call.queue, _label(call)
    accounts, actions = required_list(call, "AWSAccountIds"), required_list(call, "Actions")
    for action in actions:
        if action not in known_actions and action != "*":
            why = "Please refer to the appropriate WSDL for a list of valid actions. "
            raise invalid(f"SQS:{action}", "ActionName", why)
    for account in accounts:
        if not _ACCOUNT.fullmatch(account):
            raise invalid(account, "PrincipalId", "Unable to verify.")
    arn = arn_of(call.region, queue)
    statement = {
        "Sid": label,
        "Effect": "Allow",
        "Principal": {"AWS": _one_or_all([f"arn:aws:iam::{account}:root" for account in accounts])},
        "Action": _one_or_all([f"SQS:{action}" for action in actions]),
        "Resource": arn,
    }

    def change(found: Queue) -> dict[str, object]:
        policy = {"Version": "2008-10-17", "Id": f"{arn}/SQSDefaultPolicy"} | _policy(found)
        statements = _statements(policy)
        if any(one.get("Sid") == label for one in statements):
            raise invalid(label, "Label", "Already exists.")
        return _changed(found, policy | {"Statement": [*statements, statement]})

    edit(call.store, queue, change)
    return DONE


def remove_permission(call: Call) -> Result:
    label = _label(call)

    def change(found: Queue) -> dict[str, object]:
        policy = _policy(found)
        kept = [one for one in _statements(policy) if one.get("Sid") != label]
        if len(kept) == len(_statements(policy)):
            raise invalid(label, "Label", "can't find label.")
        return _changed(found, policy | {"Statement": kept} if kept else None)

    edit(call.store, call.queue, change)
    return DONE


def _label(call: Call) -> str:
    label = call.parameters.required("Label")
    if not _LABEL.fullmatch(label):
        raise invalid(label, "Label", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80.")
    return label


def _policy(queue: Queue) -> dict[str, object]:
    return check_policy("Policy", queue.settings.sqs.get("Policy", ""))


def _statements(policy: dict[str, object]) -> list[dict[str, object]]:
    statements = policy.get("Statement", [])
    statements = statements if isinstance(statements, list) else [statements]
    return [one for one in statements if isinstance(one, dict)]


def _changed(queue: Queue, policy: dict[str, object] | None) -> dict[str, object]:
    kept = {name: text for name, text in queue.settings.sqs.items() if name != "Policy"}
    return {"sqs": kept | ({"Policy": json.dumps(policy, separators=(",", ":"))} if policy else {})}


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values
