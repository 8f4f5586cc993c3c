"""The programs that tests run are those that were asked for."""

from __future__ import annotations

import pytest

from tests.support import programs
from tests.support.postgres import Postgres
from tests.support.programs import ProgramMissing, postgres_program


def test_postgresql_is_of_the_version_that_this_run_asks_for(postgres: Postgres) -> None:
    major = int(postgres.sql("SHOW server_version_num")) // 10_000
    assert programs.POSTGRES in (None, str(major))


def test_a_postgresql_that_is_missing_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "POSTGRES", "7")
    with pytest.raises(ProgramMissing, match="PostgreSQL 7 is not on this machine"):
        postgres_program("postgres")
