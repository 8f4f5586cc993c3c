"""Test that tests run the requested versions of programs."""

from __future__ import annotations

import pytest

from tests.support import programs
from tests.support.postgres import Postgres
from tests.support.programs import ProgramMissing, postgres_program


def test_postgresql_has_the_version_that_this_run_requires(postgres: Postgres) -> None:
    major = int(postgres.sql("SHOW server_version_num")) // 10_000
    assert programs.POSTGRES in (None, str(major))


def test_a_missing_postgresql_version_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "POSTGRES", "7")
    with pytest.raises(ProgramMissing, match="PostgreSQL 7 is not on this machine"):
        postgres_program("postgres")
