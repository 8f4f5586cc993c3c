"""The messages of a write: one or many, by the type of its body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple

from storage.column_batches import NewColumnBatch
from storage.errors import InvalidInput
from storage.model import NewMessage
from storage.validation import MAX_BATCH
from web.native.decoding import parse_json
from web.native.request import NDJSON, RUNS, TEXT, BadRequest, Environ, media_type, utf8
from web.native.request_parsing import only

# Characters of a run's names, counted for every message: a small run could otherwise become much text.
MOST_NAMES = 4 * 1024 * 1024


class Body(NamedTuple):
    """The messages of a write. `batch`: they came as a batch, so the reply has only ids."""

    messages: Sequence[NewMessage]
    batch: bool


def messages(environ: Environ, body: bytes) -> Body:
    """Return the messages of a body, by its Content-Type. Raises InvalidInput, BadRequest, UnsupportedMediaType."""
    kind = media_type(environ)
    if kind == TEXT:
        return Body([NewMessage.from_document({"text": utf8(body)})], batch=False)
    if kind == NDJSON:
        return Body(_batch(list(islice(_ndjson(body), MAX_BATCH + 1))), batch=True)
    document = parse_json(body)
    if kind == RUNS:
        return Body(_run(document), batch=True)
    if isinstance(document, list):
        return Body(_batch(document), batch=True)
    if isinstance(document, dict) and "texts" in document:
        raise InvalidInput(f"unknown field 'texts': send a run with the Content-Type {RUNS}", field="texts")
    return Body([NewMessage.from_document(document)], batch=False)


def _batch(documents: list[Any]) -> Sequence[NewMessage]:
    if not documents:
        raise InvalidInput("a batch must have at least one message")
    if len(documents) <= MAX_BATCH and (run := NewColumnBatch.of_documents(documents)) is not None:
        return run
    batch = []
    for index, document in enumerate(documents):
        if index == MAX_BATCH:
            raise InvalidInput(f"a batch has at most {MAX_BATCH} messages", index=index)
        batch.append(NewMessage.from_document(document, index))
    return batch


def _run(document: object) -> Sequence[NewMessage]:
    if not isinstance(document, dict):
        raise InvalidInput("a run must be a JSON object with 'texts'")
    only(document, "texts", "attributes")
    texts, attributes = document.get("texts"), document.get("attributes", {})
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_BATCH:
        raise InvalidInput(f"'texts' must be an array of 1 to {MAX_BATCH} strings", field="texts")
    if not isinstance(attributes, dict):
        raise InvalidInput("'attributes' must be an object of arrays", field="attributes")
    for name, values in attributes.items():
        if not isinstance(values, list) or len(values) != len(texts):
            raise InvalidInput(
                f"'{name[:128]}' in 'attributes' must be an array of {len(texts)} values, one for each text",
                field="attributes",
            )
    if sum(map(len, attributes)) * len(texts) > MOST_NAMES:
        raise InvalidInput(
            f"the attributes' names, counted once for each text, must be at most {MOST_NAMES} characters",
            field="attributes",
        )
    if "attributes" not in document:
        return NewColumnBatch.of(texts) or _batch([{"text": text} for text in texts])
    if (run := NewColumnBatch.of(texts, attributes)) is not None:
        return run
    rows: Iterable[tuple[Any, ...]] = zip(*attributes.values(), strict=True) if attributes else repeat(())
    each = (dict(zip(attributes, row, strict=True)) for row in rows)
    return _batch([{"text": text, "attributes": one} for text, one in zip(texts, each, strict=False)])


def _ndjson(body: bytes) -> Iterator[object]:
    lines = body.split(b"\n", MAX_BATCH + 1)  # no more lines are needed
    if lines[-1] == b"":
        lines.pop()
    for index, line in enumerate(lines):
        try:
            yield parse_json(line)
        except BadRequest as fault:
            fault.index = index
            raise
