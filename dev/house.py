"""The house in numbers: loose modules, files in import circles, lines, the longest files and functions.

    python dev/house.py [FOLDER]           # a checkout; this one by default
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    """Modules that `start` imports, directly or not."""
    seen: set[str] = set()
    todo = [*edges[start]]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += edges[module]
    return seen


def main() -> None:
    home = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1]) / "src" / "misdirect"
    files = {}
    for file in home.rglob("*.py"):
        parts = file.relative_to(home.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    edges = {}
    for name, tree in trees.items():
        named = {full if full in files else full.rpartition(".")[0] for full in imports(tree)}
        edges[name] = {other for other in named if other in files} - {name}
    lines = {str(f.relative_to(home)): len(f.read_text(encoding="utf-8").splitlines()) for f in files.values()}
    functions = [
        ((node.end_lineno or 0) - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    print("loose modules:", len(list(home.glob("*.py"))))
    print("files in circles:", sum(name in reached(name, edges) for name in edges))
    print("lines:", sum(lines.values()), "in", len(lines), "files")
    print("files over 350 lines:", sorted(((n, f) for f, n in lines.items() if n > 350), reverse=True))
    print("functions over 60 lines:", sorted((f for f in functions if f[0] > 60), reverse=True))


if __name__ == "__main__":
    main()
