"""Test the import and size rules of the repository, and that importing a module has no side effects."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.live import REPOSITORY

PACKAGES = ("storage", "web", "clients")
MOST_LINES = 400
MOST_FILES = 15  # in a folder, beside __init__.py


class Import(NamedTuple):
    file: str
    line: int
    module: str  # as far as known: storage.sqlite for `from storage import sqlite`
    at_import: bool  # runs when the file is imported, and not only when a function is called or types are checked

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def source_files(*names: str) -> list[Path]:
    return sorted(
        path
        for name in names
        for path in ([REPOSITORY / name] if name.endswith(".py") else (REPOSITORY / name).rglob("*.py"))
    )


def files_in(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (REPOSITORY / folder).rglob("*"))
    return [path.relative_to(REPOSITORY) for path in found if path.is_file() and "__pycache__" not in path.parts]


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(*names: str) -> Iterator[Import]:
    for path in source_files(*names):
        tree = ast.parse(path.read_text())
        later = {id(inner) for node in ast.walk(tree) if _is_later(node) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            package = _package(node, path) if isinstance(node, ast.ImportFrom) else ""
            for module in [package + alias.name for alias in node.names]:
                yield Import(str(path.relative_to(REPOSITORY)), node.lineno, module, id(node) not in later)


def _package(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return f"{node.module}."
    above = path.relative_to(REPOSITORY).parts[: -node.level]
    return ".".join([*above, *([node.module] if node.module else []), ""])


def _is_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def refused(names: tuple[str, ...], allowed: set[str]) -> list[str]:
    """Return the imports in these files that are neither from the standard library nor allowed."""
    allowed = allowed | sys.stdlib_module_names
    return [str(one) for one in imports(*names) if one.top not in allowed]


def test_storage_imports_nothing_but_itself_and_its_databases() -> None:
    assert refused(("storage",), {"storage", "apsw", "psycopg", "psycopg_pool"}) == []


def test_clients_import_nothing_but_themselves_and_their_dependencies() -> None:
    assert refused(("clients",), {"clients", "requests", "shtab", "tqdm", "urllib3", "aiohttp", "yarl"}) == []


def test_aiohttp_is_imported_by_the_client_for_asyncio_alone() -> None:
    strangers = [
        str(one)
        for one in imports("clients")
        if one.top in ("aiohttp", "yarl") or (one.module.startswith("clients.aio.client") and one.at_import)
        if not one.file.startswith("clients/aio/")
    ]
    assert strangers == []


def test_clients_import_each_other_relatively_so_that_they_may_be_installed_under_another_name() -> None:
    absolute = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in source_files("clients")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).partition(".")[0] == "clients"
    ]
    assert absolute == []


def test_handler_and_web_import_no_database_and_no_client() -> None:
    allowed = {"storage", "web", "settings", "bottle", "greenlet", "gunicorn", "apig_wsgi", "prometheus_client"}
    assert refused(("handler.py", "web"), allowed) == []
    assert [str(one) for one in imports("web") if one.top == "handler"] == []


def test_settings_import_the_standard_library_alone() -> None:
    assert refused(("settings.py",), set()) == []


def test_handler_and_web_use_storage_by_its_protocol_and_no_engine() -> None:
    engines = [one for one in imports("handler.py", "web") if "sqlite" in one.module or "postgres" in one.module]
    assert [str(one) for one in engines] == []


@pytest.mark.parametrize(
    ("database", "engine"), [("apsw", "sqlite"), ("psycopg", "postgres"), ("psycopg_pool", "postgres")]
)
def test_a_database_is_imported_by_its_engine_alone(database: str, engine: str) -> None:
    strangers = [
        str(one)
        for one in imports("handler.py", "settings.py", *PACKAGES)
        if one.top == database and not one.file.startswith(f"storage/{engine}/")
    ]
    assert strangers == []


@pytest.mark.parametrize(("one", "other"), [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_engines_do_not_import_each_other(one: str, other: str) -> None:
    crossing = [str(found) for found in imports(f"storage/{one}") if found.module.startswith(f"storage.{other}")]
    assert crossing == []


def test_an_engine_is_loaded_only_when_it_is_used() -> None:
    engines = ("storage.sqlite", "storage.postgres")
    early = [
        str(one)
        for one in imports("storage")
        if one.at_import
        and one.module.startswith(engines)
        and not one.file.startswith(("storage/sqlite/", "storage/postgres/"))
    ]
    assert early == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_in_a_circle(package: str) -> None:
    """Modules have an order in which each follows its imports, also those in functions and for types."""
    names = {module_name(path) for path in source_files(package)}
    needs: dict[str, set[str]] = {name: set() for name in names}
    for one in imports(package):
        target = one.module if one.module in names else one.module.rpartition(".")[0]
        if target in names:
            needs[module_name(REPOSITORY / one.file)].add(target)
    while free := {name for name, wanted in needs.items() if not wanted & needs.keys()}:
        needs = {name: wanted for name, wanted in needs.items() if name not in free}
    assert needs == {}


def test_no_file_is_long() -> None:
    files = [Path("handler.py"), Path("settings.py"), Path("gunicorn.conf.py"), *files_in(*PACKAGES)]
    lines = {str(path): len((REPOSITORY / path).read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_no_folder_is_crowded() -> None:
    folders = Counter(str(path.parent) for path in files_in(*PACKAGES, "tests") if path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}


def test_the_decisions_explain_every_top_level_entry() -> None:
    ignored = [line.strip("/") for line in (REPOSITORY / ".gitignore").read_text().splitlines() if line[:1] != "#"]
    top = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in REPOSITORY.iterdir()
        if path.name != ".git"
        and not any(fnmatch(path.name, pattern) for pattern in ignored)
        and (path.is_file() or files_in(path.name))  # an older checkout leaves caches
    }
    decisions = (REPOSITORY / "docs/decisions.md").read_text()
    assert sorted(name for name in top if f"`{name}`" not in decisions) == []


def test_only_settings_read_the_environment() -> None:
    readers = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in source_files("handler.py", "web", "storage", "gunicorn.conf.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"}
            and isinstance(node.value, ast.Name) and node.value.id == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os"
            and {alias.name for alias in node.names} & {"environ", "environb", "getenv"})
    ]  # fmt: skip
    assert readers == []


def test_the_top_level_has_no_other_entries() -> None:
    assert {path.name for path in REPOSITORY.glob("*.py")} == {"handler.py", "settings.py", "gunicorn.conf.py"}


# Import modules and report what their code did beyond definitions.
WATCHER = """
import importlib, json, os, sys, threading
import apsw
from collections.abc import MutableMapping
repository, *modules = sys.argv[1:]
deeds = []

def note(deed):
    # Whose it is: that of the module being imported, whatever libraries it called on the way.
    frame = sys._getframe(2)
    while frame is not None and "importlib" not in (name := frame.f_code.co_filename):
        # Libraries may be inside too: tox and venvs put them in hidden directories.
        if name.startswith(repository + os.sep) and f"{os.sep}." not in name.removeprefix(repository):
            deeds.append(f"{os.path.relpath(name, repository)}:{frame.f_lineno} {deed}")
            return
        frame = frame.f_back

def watch(event, arguments):
    if event in ("open", "os.open", "subprocess.Popen", "socket.connect", "socket.bind",
                 "sqlite3.connect", "os.fork", "os.mkdir", "os.remove", "os.putenv"):
        note(event)

class Environment(MutableMapping):
    def __init__(self, real): self.real = real
    def __getitem__(self, name): note("environment"); return self.real[name]
    def __iter__(self): note("environment"); return iter(self.real)
    def __len__(self): note("environment"); return len(self.real)
    def __setitem__(self, name, value): note("environment"); self.real[name] = value
    def __delitem__(self, name): note("environment"); del self.real[name]

def start(thread, start=threading.Thread.start):
    note("thread")  # Python reports it to audit hooks only since 3.12
    start(thread)

apsw.connection_hooks.append(lambda connection: note("connection"))
threading.Thread.start = start
os.environ = Environment(os.environ)
sys.addaudithook(watch)
for module in modules:
    importlib.import_module(module)
print(json.dumps(deeds))
"""


def deeds(repository: Path, *modules: str) -> list[str]:
    imported = subprocess.run(
        [sys.executable, "-c", WATCHER, str(repository), *modules],
        cwd=repository, capture_output=True, check=False, text=True, timeout=60,
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    found: list[str] = json.loads(imported.stdout)
    return found


def test_to_import_any_module_opens_nothing_reads_no_environment_and_starts_no_thread() -> None:
    assert deeds(REPOSITORY, *map(module_name, source_files("handler.py", "settings.py", *PACKAGES))) == []


def test_side_effects_at_import_are_detected(tmp_path: Path) -> None:
    lines = [
        "import apsw, os, pathlib, socket, threading",
        "os.environ.get('PORT')",
        "'PORT' in os.environ",
        "os.getenv('PORT')",
        "open('/dev/null').close()",
        "os.close(os.open('/dev/null', os.O_RDONLY))",
        "pathlib.Path('/dev/null').read_text()",
        "threading.Thread(target=lambda: None).start()",
        "apsw.Connection(':memory:').close()",
        "socket.socket().bind(('127.0.0.1', 0))",
    ]
    (tmp_path / "doer.py").write_text("\n".join(lines))
    assert {deed.split()[0] for deed in deeds(tmp_path, "doer")} == {
        f"doer.py:{number}" for number in range(2, len(lines) + 1)
    }
