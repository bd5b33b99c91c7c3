"""What is imported when: no torch until it is needed, and imports between packages run one way."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import misdirect

SOURCE = Path(misdirect.__file__).parent
HEAVY = ("torch", "transformers", "datasets", "scipy", "matplotlib")


def loaded_after(code: str) -> set[str]:
    """Which of `HEAVY` a fresh Python has loaded once it has run `code`."""
    probe = f"{code}\nimport sys\nprint('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import misdirect",
        "import misdirect\nfor name in misdirect.__all__: getattr(misdirect, name)",
        "import misdirect.cli.main",
        "import misdirect.reporting",
        "import misdirect.runs, misdirect.config, misdirect.recipes, misdirect.stats",
        "import misdirect.data.questions, misdirect.data.corpora, misdirect.data.demo",
        "from misdirect.cli.main import main; assert main(['--help']) == 0",
        "from misdirect.cli.main import main; assert main(['unlearn', '--help']) == 0",
        "from misdirect.cli.main import main; assert main(['--version']) == 0",
        "from misdirect.cli.main import main; assert main(['unlern']) == 2",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_after(code) == set()


def test_a_report_is_written_without_torch(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from misdirect import runs
from misdirect.cli.main import main
folder = Path({str(tmp_path)!r})
metric = runs.Metric("nll_per_token", 3.0, 0.1, 20, 2.8, 3.2, headline=True)
runs.save_result(folder, "base", runs.Result("nll", "kept", {{}}, (metric,), ()))
assert main(["report", str(folder)]) == 0
"""
    assert "torch" not in loaded_after(code)
    assert "nll" in (tmp_path / "report.html").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("code", ["import misdirect.unlearning.rmu", "import misdirect.evaluation.mcq"])
def test_the_check_can_fail(code: str) -> None:
    assert "torch" in loaded_after(code)


def test_an_unknown_name_is_no_attribute() -> None:
    assert misdirect.__version__
    with pytest.raises(AttributeError, match="module 'misdirect' has no attribute 'unlern'"):
        misdirect.unlern  # type: ignore[attr-defined]  # noqa: B018


def imports(tree: ast.AST, module_level: bool = False) -> Iterator[str]:
    """Full names of what a module imports, without what stands under `if TYPE_CHECKING`; or at module level alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(node, module_level)


def parsed(package: str) -> dict[str, ast.AST]:
    """Path below the package -> syntax tree, of a module or of every module of a subpackage."""
    home = SOURCE / package
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    assert files
    return {str(file.relative_to(SOURCE)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


LIGHT = "misdirect.evaluation.side_by_side"  # in a heavy package, and imports torch in functions alone


def breaches(package: str, forbidden: tuple[str, ...], module_level: bool = False) -> list[str]:
    return [
        f"{file} imports {name}"
        for file, tree in parsed(package).items()
        for name in imports(tree, module_level)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
        and not (module_level and name.startswith(LIGHT))
    ]


def ours(*packages: str) -> tuple[str, ...]:
    return tuple(f"misdirect.{package}" for package in packages)


# From the top down: a room imports from those below it alone. Rooms of one line do not know each other.
FLOORS = (
    ("__main__", "cli"),
    ("api",),
    ("exporting",),
    ("auditing", "planning", "reporting"),
    ("attacks",),
    ("evaluation", "unlearning"),
    ("model",),
    ("data", "runs"),
    ("recipes",),
    ("config", "storage", "progress", "interrupts", "stats"),
    ("text",),
)
FORBIDDEN = {  # beside the floors
    "reporting": (*ours("attacks", "evaluation", "unlearning", "model"), "torch", "transformers"),
    "planning": ours("attacks"),
    "runs": ("torch",),
    "config": ("torch",),
    "stats": ("torch",),
}
# Within one floor
ALLOWED = {("cli", "cli"), ("__main__", "cli"), ("data", "data"), ("storage", "text"), ("config", "stats")}


def room_of(module: str) -> str:
    """The package, or the loose module, that a full name lies in."""
    return module.split(".")[1] if "." in module else "__init__"


def upwards(package: str) -> list[str]:
    """Imports of a room from its own floor or from one above."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    return [
        f"{file} imports {name}"
        for file, tree in parsed(package).items()
        for name in imports(tree)
        if name.startswith("misdirect.") and (room := room_of(name)) in floor and room != package
        if floor[room] <= floor[package] and (package, room) not in ALLOWED
    ]


@pytest.mark.parametrize("package", [room for rooms in FLOORS for room in rooms])
def test_imports_run_one_way(package: str) -> None:
    assert upwards(package) == []
    assert breaches(package, FORBIDDEN.get(package, ())) == []


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == {room for rooms in FLOORS for room in rooms}


def edges(modules: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, inside functions too."""
    found = {}
    for module, tree in modules.items():
        named = {name if name in modules else name.rpartition(".")[0] for name in imports(tree)}
        found[module] = {name for name in named if name in modules} - {module}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {}
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(
            file.read_text(encoding="utf-8")
        )
    graphlib.TopologicalSorter(edges(modules)).prepare()  # CycleError names the circle
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(
            edges({"a": ast.parse("import b"), "b": ast.parse("from b import c\nimport a")})
        ).prepare()


@pytest.mark.parametrize("package", ["cli", "api", "runs", "data/files", "data/questions", "data/corpora", "data/demo"])
def test_modules_on_the_way_to_help_import_torch_in_functions_alone(package: str) -> None:
    heavy = ("torch", "transformers", "datasets", *ours("model", "evaluation", "unlearning", "data.batches"))
    assert breaches(package, heavy, module_level=True) == []


def test_the_rules_would_be_seen_broken() -> None:
    assert breaches("evaluation", ours("model")) != []
    assert breaches("unlearning", ("torch",)) != []
    assert breaches("api", ours("unlearning")) != []
    assert breaches("api", ours("unlearning"), module_level=True) == []
