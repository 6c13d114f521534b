"""Layers, cycles, sizes and light imports of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "openhearth"

ROWS = {
    "errors": 0, "units": 0,
    "config": 1, "durable": 1, "formats": 1, "hardware": 1, "listening": 1,
    "accounts": 2, "hub": 2, "chat": 2, "runs": 2, "spec": 2,
    "conform": 3, "kernels": 3, "tasks": 3,
    "models": 4,
    "engine": 5,
    "local": 6,
    "bench": 7, "evals": 7, "server": 7, "tune": 7,
    "cli": 8,
}
NO_TORCH = [*(name for name, row in ROWS.items() if row <= 2), "conform", "tasks"]


def modules():
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        yield path, parts


def imported(path, *, with_typing=True):
    """Modules below `openhearth.` that a file imports anywhere, as tuples of parts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If)
                   and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
                   for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if not with_typing and id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "openhearth":
                package = tuple(node.module.split(".")[1:])
                for alias in node.names:
                    is_module = (SRC.joinpath(*package, alias.name).is_dir()
                                 or SRC.joinpath(*package, f"{alias.name}.py").exists())
                    yield (*package, alias.name) if is_module else package
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("openhearth."):
                    yield tuple(alias.name.split(".")[1:])


def test_every_package_has_a_row():
    names = {parts[0] for _, parts in modules()} - {"__init__", "__main__"}
    assert names == set(ROWS)


@pytest.mark.parametrize("path,parts", [pytest.param(p, q, id="/".join(q)) for p, q in modules()])
def test_imports_point_down(path, parts):
    if parts[0] in {"__init__", "__main__"}:
        return
    for target in imported(path):
        if target[0] == parts[0]:
            assert len(target) > 1, f"{path} imports its own package's __init__"
        else:
            assert ROWS[target[0]] < ROWS[parts[0]], f"{path} (row {ROWS[parts[0]]}) imports {target}"


def test_no_import_cycles_between_modules():
    graph = {}
    names = {parts for _, parts in modules()}
    for path, parts in modules():
        targets = set(imported(path, with_typing=False))
        graph[parts] = {t for t in targets if t in names} | {
            (*t, "__init__") for t in targets if (*t, "__init__") in names and t[0] != parts[0]}
    done, active = set(), []

    def visit(node):
        assert node not in active, f"cycle: {[*active[active.index(node):], node]}"
        if node in done:
            return
        active.append(node)
        for target in graph[node]:
            visit(target)
        active.pop()
        done.add(node)

    for node in graph:
        visit(node)


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(SRC))) for p, _ in modules()])
def test_modules_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600, f"{path} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 100, f"{path}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(SRC))) for p, _ in modules()])
def test_modules_are_ascii_and_documented(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii(), f"{path}: " + repr(next(c for c in text if not c.isascii()))
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def public_definitions(body, prefix=""):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{node.name}.")


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(SRC))) for p, _ in modules()])
def test_public_functions_classes_and_methods_are_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = [f"{name} (line {node.lineno})" for name, node in public_definitions(tree.body)
            if not ast.get_docstring(node)]
    assert not bare, f"{path}: no docstring: {', '.join(bare)}"


@pytest.mark.parametrize("name", NO_TORCH)
def test_light_packages_do_not_import_torch(name):
    code = (f"import sys, pkgutil, importlib, openhearth.{name} as m\n"
            "for x in pkgutil.walk_packages(getattr(m, '__path__', []), m.__name__ + '.'):\n"
            "    importlib.import_module(x.name)\n"
            "assert 'torch' not in sys.modules, 'torch'")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC.parent), "PATH": ""},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
