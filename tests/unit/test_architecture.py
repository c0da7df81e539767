"""The shape of the source: who may import whom, and what every file and function owes its reader."""

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "broker", "gateway")
FUNCTION_LINES = 60

# Third parties by owner: the files, below each package, that may import them.
OWNERS = {
    "nats": [
        "broker/client.py",
        "broker/connection.py",
        "broker/jetstream.py",
        "broker/outages.py",
        "broker/receiving.py",
    ],
    "nkeys": ["broker/access.py"],
    "aiohttp": ["broker/http*.py", "broker/ingest/routes.py", "gateway/*"],
    "multidict": [
        "broker/http_guard.py",
        "gateway/admission.py",
        "gateway/passthrough.py",
        "gateway/response.py",
        "gateway/upstream.py",
    ],
    "opentelemetry": ["broker/otel.py"],
    "jwt": ["broker/auth/jwks.py", "broker/auth/tokens.py"],
    "yarl": ["gateway/upstream.py"],
    "httpx": ["broker/agents/http*.py", "broker/auth/jwks.py"],
    "httpx_sse": ["broker/agents/http*.py"],
    "pydantic": [
        "*/settings*.py",
        "schemas/requests.py",
        "schemas/queries.py",
        "schemas/ingest.py",
        "broker/ingest/routes.py",
        "broker/openapi.py",
        "gateway/validation.py",
    ],
    "pydantic_settings": ["*/settings*.py"],
    "rich": ["gateway/commands/*"],
    "typer": ["gateway/cli.py", "gateway/keys.py", "gateway/commands/*"],
    "structlog": ["broker/logs.py", "broker/worker.py", "gateway/*"],
}
READERS_OF_THE_ENVIRONMENT = ["*/settings*.py"]


def sources() -> Iterator[tuple[str, Path]]:
    """Every module, named as people name it: `broker/errors.py`."""
    for package in PACKAGES:
        base = ROOT / package / "runstream"
        for path in sorted((base / package).rglob("*.py")):
            yield path.relative_to(base).as_posix(), path


SOURCES = dict(sources())


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imported(name: str) -> set[str]:
    """The full names of the modules that a module imports, wherever in it, for types or for real."""
    found: set[str] = set()
    here = ["runstream", *Path(name).parts[:-1]]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from runstream import gateway` imports runstream.gateway.
            found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return found


def importers(module: str) -> list[str]:
    return [name for name in SOURCES if any(each == module or each.startswith(f"{module}.") for each in imported(name))]


def outside(names: list[str], allowed: list[str]) -> list[str]:
    """Those that no pattern allows; a pattern's * crosses directories."""
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in allowed)]


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_there_is_something_to_look_at() -> None:
    """The tests below would pass on nothing."""
    assert {"broker/errors.py", "broker/embedded.py"} <= set(SOURCES)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_three_folders_are_one_namespace(package: str) -> None:
    """A runstream/__init__.py in any of them would hide the others; each is typed for who installs it."""
    assert not (ROOT / package / "runstream" / "__init__.py").exists()
    assert (ROOT / package / "runstream" / package / "py.typed").exists()


@pytest.mark.parametrize(
    ("module", "forbidden"), [("schemas", "broker"), ("schemas", "gateway"), ("broker", "gateway")]
)
def test_imports_point_one_way(module: str, forbidden: str) -> None:
    """Schemas know nobody, the broker knows schemas, and the gateway knows both."""
    above = importers(f"runstream.{forbidden}")
    assert [name for name in above if name.startswith(f"{module}/")] == []


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_its_owners(library: str) -> None:
    """Each foreign thing enters at one place, where its errors are translated."""
    assert outside(importers(library), OWNERS[library]) == []


def test_the_environment_is_read_only_by_settings() -> None:
    """Who needs a setting is given it."""
    readers = [
        name
        for name in SOURCES
        if imported(name) & {"os.environ", "os.getenv", "os.environb"}
        or any(
            isinstance(node, ast.Attribute)
            and node.attr in {"environ", "environb", "getenv"}
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            for node in ast.walk(tree(name))
        )
    ]
    assert outside(readers, READERS_OF_THE_ENVIRONMENT) == []


def test_every_module_says_what_it_is() -> None:
    """A file opens with one sentence that says which room it is."""
    assert [name for name in SOURCES if not ast.get_docstring(tree(name))] == []


def test_functions_fit_a_screen() -> None:
    """What does not fit is two functions."""
    long = [
        f"{name}:{function.lineno} {function.name}"
        for name in SOURCES
        for function in functions(name)
        if (function.end_lineno or 0) - function.lineno >= FUNCTION_LINES
    ]
    assert long == []


def drawn_tree(docstring: str) -> dict[str, str | None]:
    """Each class in the drawing with the one it hangs on; the root hangs on none."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in docstring.splitlines():
        branch = re.match(r"^((?:[│ ]   )*)[├└]── (\w+)", line)
        if branch:
            depth = len(branch[1]) // 4 + 1
            drawn[branch[2]] = path[depth - 1]
            path[depth:] = [branch[2]]
        elif re.fullmatch(r"[A-Z]\w+", line.strip()):
            drawn[line.strip()] = None
            path = [line.strip()]
    return drawn


def defined_errors(name: str) -> dict[str, str | None]:
    """Each exception class in a file with its parent there, if it has one there."""
    found: dict[str, str | None] = {}
    for node in tree(name).body:
        if isinstance(node, ast.ClassDef):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            parents = [base for base in bases if base in found]
            if parents or any(is_builtin_error(base) for base in bases):
                found[node.name] = parents[0] if parents else None
    return found


def is_builtin_error(name: str) -> bool:
    known = getattr(builtins, name, None)
    return isinstance(known, type) and issubclass(known, BaseException)


@pytest.mark.parametrize("name", [name for name in SOURCES if Path(name).name == "errors.py"])
def test_the_drawing_of_the_error_tree_is_the_error_tree(name: str) -> None:
    """Who reads the top of errors.py has read the tree."""
    assert drawn_tree(ast.get_docstring(tree(name)) or "") == defined_errors(name)
