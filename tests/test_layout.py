"""Notebook and tools -> the four -> carvana/ -> unet: nothing imports upward, in a circle, or a tool."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import SCRIPT_DIR

FOUR = ["unet", "data", "extra", "train"]  # each may import those before it
FILES = {path: ".".join(path.relative_to(SCRIPT_DIR).with_suffix("").parts) for path in SCRIPT_DIR.rglob("*.py")}


def imports_of(path) -> set[str]:
    """Modules of this project that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & {*FILES.values()}


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_imports_go_downward(path):
    name, found = FILES[path], imports_of(path)
    if name.startswith("carvana"):
        assert all(other.startswith("carvana.") or other == "unet" for other in found)
    elif name in FOUR:
        assert all(other.startswith("carvana.") or other in FOUR[: FOUR.index(name)] for other in found)
    else:
        assert all(other.startswith("carvana.") or other in FOUR for other in found)


def test_no_import_circle():
    TopologicalSorter({name: imports_of(path) for path, name in FILES.items()}).prepare()  # or a CycleError
