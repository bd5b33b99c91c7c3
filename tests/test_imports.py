"""What is imported when: no torch until it is needed, and imports between packages run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
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
        "import misdirect.cli.verbs",
        "import misdirect.reporting",
        "import misdirect.runs, misdirect.config, misdirect.recipes, misdirect.stats",
        "import misdirect.data.questions, misdirect.data.corpora, misdirect.data.demo",
        "from misdirect.cli.verbs import main; assert main(['--help']) == 0",
        "from misdirect.cli.verbs import main; assert main(['unlearn', '--help']) == 0",
        "from misdirect.cli.verbs import main; assert main(['--version']) == 0",
        "from misdirect.cli.verbs import main; assert main(['unlern']) == 2",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_after(code) == set()


def test_a_report_is_written_without_torch(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from misdirect import runs
from misdirect.cli.verbs import main
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


def breaches(package: str, forbidden: tuple[str, ...], module_level: bool = False) -> list[str]:
    return [
        f"{file} imports {name}"
        for file, tree in parsed(package).items()
        for name in imports(tree, module_level)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]


def ours(*packages: str) -> tuple[str, ...]:
    return tuple(f"misdirect.{package}" for package in packages)


ABOVE = ("api", "cli", "planning")
RULES = [
    ("config", (*ours("api", "cli", "data", "model", "evaluation", "unlearning", "reporting", "runs"), "torch")),
    ("stats", (*ours("api", "cli", "data", "model", "evaluation", "unlearning", "reporting", "runs"), "torch")),
    ("runs", (*ours("api", "cli", "data", "model", "evaluation", "unlearning", "reporting"), "torch")),
    ("data", ours(*ABOVE, "evaluation", "unlearning", "reporting", "runs")),
    ("model", ours(*ABOVE, "evaluation", "unlearning", "reporting")),
    ("evaluation", ours(*ABOVE, "unlearning", "reporting")),
    ("unlearning", ours(*ABOVE, "evaluation", "reporting")),
    ("planning", ours("api", "cli", "reporting")),
    ("reporting", (*ours(*ABOVE, "evaluation", "unlearning", "model"), "torch", "transformers")),
]


@pytest.mark.parametrize(("package", "forbidden"), RULES, ids=[package for package, _ in RULES])
def test_imports_run_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    assert breaches(package, forbidden) == []


@pytest.mark.parametrize(
    "package", ["cli", "api", "reproduce", "data/files", "data/questions", "data/corpora", "data/demo"]
)
def test_modules_on_the_way_to_help_import_torch_in_functions_alone(package: str) -> None:
    heavy = ("torch", "transformers", "datasets", *ours("model", "evaluation", "unlearning", "data.batches"))
    assert breaches(package, heavy, module_level=True) == []


def test_the_rules_would_be_seen_broken() -> None:
    assert breaches("evaluation", ours("model")) != []
    assert breaches("unlearning", ("torch",)) != []
    assert breaches("api", ours("unlearning")) != []
    assert breaches("api", ours("unlearning"), module_level=True) == []
