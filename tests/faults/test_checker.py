"""Test that the checker finds losses and duplicates, in histories and with a broken engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from tests.support.checker import History, Operation, Outcome, Verdict, judge, read_histories
from tests.support.live import LiveServer, await_true
from tests.support.load import Load

ACKNOWLEDGED, REFUSED, UNKNOWN = Outcome
KILLS = 4  # a kill may come right after a commit


def write(text: str, number: int = 1, outcome: Outcome = ACKNOWLEDGED, at: float = 0.0) -> Operation:
    ids = [str(number)] if outcome is ACKNOWLEDGED else []
    return Operation("write", at, [text], outcome=outcome, answered=at + 0.1, got=ids)


def take(text: str, number: int = 1) -> Operation:
    return Operation("read", 1.0, outcome=ACKNOWLEDGED, answered=1.1, got=[{"id": str(number), "text": text}])


def lease(text: str, receipt: str, count: int = 1, at: float = 1.0, seconds: float = 10.0) -> Operation:
    message = {"id": "1", "text": text, "receipt": receipt, "receive_count": count}
    return Operation("read", at, lease=seconds, outcome=ACKNOWLEDGED, answered=at + 0.1, got=[message])


def ack(receipt: str, outcome: Outcome = ACKNOWLEDGED, holds: bool = True) -> Operation:
    return Operation("ack", 2.0, [receipt], outcome=outcome, answered=2.1, got=[] if holds else [receipt])


# Correct histories.


def test_a_message_written_and_read_once_is_correct() -> None:
    verdict = judge([write("a", 1), write("b", 2, at=1), take("a", 1), lease("b", "r"), ack("r")])
    assert verdict == Verdict(2, 0, 0, read=2, recovered=0, lost=[], unexpected=[], duplicated=[], disordered=[])
    assert verdict.faultless


@pytest.mark.parametrize("reads", [[], [take("a")]])
def test_a_write_of_unknown_outcome_may_be_stored_or_not(reads: list[Operation]) -> None:
    verdict = judge([write("a", outcome=UNKNOWN), *reads])
    assert verdict.faultless
    assert (verdict.unknown, verdict.recovered) == (1, len(reads))


def test_a_second_delivery_after_the_end_of_the_lease_is_by_the_rules() -> None:
    assert judge([write("a"), lease("a", "r1", 1, at=1), lease("a", "r2", 2, at=11), ack("r2")]).faultless


def test_a_message_whose_ack_had_no_reply_may_be_redelivered_when_its_lease_ends() -> None:
    again = [lease("a", "r2", 2, at=11), ack("r2")]
    assert judge([write("a"), lease("a", "r1"), ack("r1", UNKNOWN)]).faultless
    assert judge([write("a"), lease("a", "r1"), ack("r1", UNKNOWN), *again]).faultless


def test_a_pipeline_is_judged_by_the_texts_that_went_in() -> None:
    assert judge([write("a"), take("a>1>2")], lambda text: text.partition(">")[0]).faultless


# Losses.


def test_an_acknowledged_write_that_was_never_read_is_lost() -> None:
    assert judge([write("a", 1), write("b", 2, at=1), take("a", 1)]).lost == ["b"]


def test_a_message_leased_and_never_settled_is_lost() -> None:
    assert judge([write("a"), lease("a", "r")]).lost == ["a"]


def test_a_message_whose_ack_was_refused_and_that_was_not_redelivered_is_lost() -> None:
    assert judge([write("a"), lease("a", "r"), ack("r", holds=False)]).lost == ["a"]
    assert judge([write("a"), lease("a", "r"), ack("r", REFUSED)]).lost == ["a"]


# Unexpected messages.


@pytest.mark.parametrize("writes", [[], [write("a", outcome=REFUSED)]])
def test_a_message_never_written_or_refused_is_unexpected(writes: list[Operation]) -> None:
    assert judge([*writes, take("a")]).unexpected == ["a"]


@pytest.mark.parametrize(
    "reads",
    [
        pytest.param([take("a"), take("a")], id="taken twice"),
        pytest.param([take("a", 1), take("a", 2)], id="stored twice"),
        pytest.param([lease("a", "r1", 1, at=1), lease("a", "r2", 2, at=10)], id="leased again before the lease ended"),
        pytest.param([lease("a", "r1", 1, at=1), lease("a", "r2", 1, at=99)], id="two first deliveries"),
        pytest.param([lease("a", "r1"), ack("r1"), lease("a", "r2", 2, at=99)], id="leased again although settled"),
        pytest.param([lease("a", "r1"), ack("r1"), take("a")], id="taken although settled"),
        pytest.param([lease("a", "r1"), lease("a", "r2", 2, at=99), ack("r1"), ack("r2")], id="settled twice"),
    ],
)
def test_a_delivery_outside_the_rules_of_leases_is_a_duplicate(reads: list[Operation]) -> None:
    assert judge([write("a"), *reads]).duplicated == ["a"]


def test_an_id_below_one_acknowledged_before_is_disordered() -> None:
    overlapping = [write("a", 2, at=0), write("b", 1, at=0.05)]
    one_after_another = [write("a", 2, at=0), write("b", 1, at=1)]
    reads = [take("a", 2), take("b", 1)]
    assert judge([*overlapping, *reads]).faultless
    assert judge([*one_after_another, *reads]).disordered == ["b"]


# The history on disk.


def test_a_history_has_requests_without_or_with_half_an_answer(tmp_path: Path) -> None:
    for name, end in {"a": b"", "b": b'{"outcome": "acknow'}.items():
        history = History(tmp_path / f"{name}.jsonl")
        history.asking("write", [f"{name}-0"])
        history.answered(ACKNOWLEDGED, ["17"])
        history.asking("write", [f"{name}-1"])
        history.close()
        with history.path.open("ab") as file:
            file.write(end)
    operations = [(*operation.given, operation.outcome, *operation.got) for operation in read_histories(tmp_path)]
    assert operations == [("a-0", ACKNOWLEDGED, "17"), ("a-1", UNKNOWN), ("b-0", ACKNOWLEDGED, "17"), ("b-1", UNKNOWN)]


# A broken engine, killed.


@pytest.fixture
def broken() -> Iterator[LiveServer]:
    """Run an engine that acknowledges up to 0.3 s before it commits."""
    with LiveServer({"GUNICORN_CMD_ARGS": "--config python:tests.faults.broken_app"}) as server:
        yield server
        server.kill()


def test_the_checker_reports_the_loss_of_an_engine_that_acknowledges_before_its_commit(
    broken: LiveServer, tmp_path: Path
) -> None:
    with Load(broken.port, tmp_path).write(2) as load:
        await_true(lambda: _committed(broken) > 0)  # not everything is lost
        for _ in range(KILLS):
            _await_more(tmp_path, "write")
            broken.restart()
        verdict = load.finish()
    assert verdict.lost, verdict
    assert len(verdict.lost) < verdict.acknowledged


def test_the_checker_reports_the_second_delivery_of_an_engine_that_answers_before_its_commit(
    broken: LiveServer, tmp_path: Path
) -> None:
    with Load(broken.port, tmp_path).write(batch=20) as load:
        for _ in range(KILLS):
            _await_more(tmp_path, "write")
        load.finish_writing()
        await_true(lambda: _committed(broken) == _done(tmp_path, "write"))
        load.read()
        for _ in range(KILLS):
            _await_more(tmp_path, "read")
            broken.restart()
        verdict = load.finish()
    assert verdict.duplicated, verdict
    assert not verdict.lost, verdict


def _await_more(histories: Path, kind: str) -> None:
    before = _done(histories, kind)
    await_true(lambda: _done(histories, kind) > before + 20)


def _done(histories: Path, kind: str) -> int:
    """Return the number of messages whose writes, or reads, were acknowledged."""
    operations = [one for one in read_histories(histories) if one.kind == kind and one.outcome is ACKNOWLEDGED]
    return sum(len(operation.got) for operation in operations)


def _committed(server: LiveServer) -> int:
    with closing(apsw.Connection(str(server.database))) as connection:
        count: int = connection.execute("SELECT coalesce(sum(sent), 0) FROM queues").get
        return count
