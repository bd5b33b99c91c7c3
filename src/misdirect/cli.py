"""The command line: each verb parses, calls the Python function of the same name, and prints the next command.

Bad input is one line on standard error and exit code 2. `--config FILE` is a YAML mapping of the verb's own flags;
flags on the command line win over it. Nothing here imports torch: `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Group, Parameter

from misdirect import __version__, runs
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig

SOURCES = (
    "a file or folder (jsonl, json, csv, tsv, parquet, txt, md; also .gz), hub:DATASET[:CONFIG[:SPLIT]], or demo-..."
)
ASKED = "Questions a side, of 856 on biology and 1,108 on other science; 0 asks all."


app = App(
    name="misdirect",
    version=__version__,
    help="Unlearn a topic from any Hugging Face decoder on one small machine, then measure what is really gone.\n\n"
    "New here? Type: misdirect demo",
    help_epilogue=f"MODEL is demo (SmolLM2-135M-Instruct from a package), a local folder, or a hub id. SOURCE is {SOURCES}.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` says what happens next
)


def without(config: type, *names: str) -> Any:
    """A config dataclass less some fields: those that the command line takes per topic."""
    types = get_type_hints(config)
    kept = [
        (f.name, types[f.name], dataclasses.field(default=f.default, metadata=f.metadata))
        for f in dataclasses.fields(config)
        if f.name not in names
    ]
    made = dataclasses.make_dataclass(config.__name__, kept, frozen=True)
    made.__module__ = __name__  # else cyclopts takes it for one of Python's own types and does not look inside
    return made


UnlearnFlags = without(UnlearnConfig, "steering", "alpha")
Repeated = Parameter(negative=(), consume_multiple=False, show_default=False)
Settings = Group("Settings", sort_key=2)


def pair(flag: str, text: str) -> tuple[str, str]:
    """`NAME=SOURCE` -> (NAME, SOURCE). Raises ValueError that says what to type."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{flag} {text!r} is no pair; expected {flag} NAME=SOURCE, such as {flag} biology=bio.jsonl")
    return name, value


def pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in (pair(flag, text) for text in texts):
        if name in found:
            raise ValueError(f"{flag} names {name!r} twice; expected a name of its own for each")
        found[name] = value
    return found


def weighted(text: str) -> Corpus:
    """`NAME=SOURCE[@WEIGHT]` -> Corpus. An @ that no number follows belongs to the source."""
    name, source = pair("--retain", text)
    head, _, tail = source.rpartition("@")
    try:
        weight = float(tail)
    except ValueError:
        return Corpus(name, source)
    return Corpus(name, head, weight) if head else Corpus(name, source)


def per_topic(flag: str, texts: Sequence[str], topics: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """`[NAME=]VALUE` several times -> (the value for all, name -> its own). Raises ValueError for an unknown topic."""
    common, own = None, {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            if common is not None:
                raise ValueError(f"{flag} was given twice for all topics ({common} and {text}); expected it once")
            common = text
        elif name not in topics:
            raise ValueError(f"{flag} {text} names no topic; expected one of {', '.join(topics)}")
        else:
            own[name] = value
    return common, own


def number(flag: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ValueError(f"{flag} {text!r} is no number; expected one such as 100") from None


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    model: str = "demo",
    limit: Annotated[int, Parameter(help=ASKED)] = 300,
    seed: int = 0,
) -> None:
    """Forget biology in SmolLM2-135M-Instruct, measure what is gone and what is kept, and write a page that shows it.

    About four minutes on two cores; the first time, 180 MB are fetched from the Python registry.

    Parameters
    ----------
    out
        The run directory to write.
    model
        The model: demo, a local folder, or a hub id.
    seed
        Seed of the control vector, the sample order and the draw of questions.
    """
    from misdirect import api

    if limit < 0:
        raise ValueError(f"--limit {limit} is too small; expected at least 1, or 0 for all")
    run = api.demo(out, model, limit or None, seed)
    print_table(runs.read_json(run / runs.SUMMARY))
    print(f"\nThe page: {run / runs.REPORT}")
    say_next(
        f"misdirect unlearn demo --forget {shlex.quote('mytopic=FILE')} --retain wiki=demo-retain-wikipedia --out runs/mine"
    )


@app.command
def unlearn(
    model: str,
    *,
    forget: Annotated[list[str], Repeated],
    retain: Annotated[list[str], Repeated],
    out: Path,
    steering: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    alpha: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    trust_remote_code: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    allow_pickle: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    settings: Annotated[UnlearnFlags, Parameter(name="*", group=Settings)] = UnlearnFlags(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Unlearn topics from a model with RMU. A killed run goes on when the same command is typed again.

    Parameters
    ----------
    model
        The model: demo, a local folder, or a hub id.
    forget
        NAME=SOURCE: text on what to forget; repeat for several topics.
    retain
        NAME=SOURCE[@WEIGHT]: text on what to keep; repeat for a mixture.
    out
        The run directory to write.
    steering
        [NAME=]C: how far forget activations are moved, as a number (6.5) or a multiple of the measured median token
        norm (5x). [default: 5x]
    alpha
        [NAME=]A: weight of the retain loss. [default: 100]
    trust_remote_code
        Run the code that comes with the model. Read it first.
    allow_pickle
        Read pickle checkpoints, which can run code. Safetensors need no flag.
    """
    from misdirect import api

    sources = pairs("--forget", forget)
    strength, strengths = per_topic("--steering", steering, list(sources))
    weight, weights = per_topic("--alpha", alpha, list(sources))
    topics = [
        Topic(name, source, strengths.get(name), number("--alpha", weights.get(name)))
        for name, source in sources.items()
    ]
    config = UnlearnConfig(**dataclasses.asdict(settings), steering=strength, alpha=number("--alpha", weight))
    run = api.unlearn(
        model,
        topics,
        [weighted(text) for text in retain],
        out,
        config,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    print(f"The change: {run / runs.DELTA}")
    first = shlex.quote(next(iter(sources)) + "=QUESTIONS.jsonl")
    say_next(f"misdirect evaluate {shlex.quote(str(run))} --questions {first} --text kept=TEXT.jsonl")


@app.command
def evaluate(
    target: str,
    *,
    questions: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    text: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    prompts: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    out: Path | None = None,
    trust_remote_code: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    allow_pickle: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    settings: Annotated[EvaluateConfig, Parameter(name="*", group=Settings)] = EvaluateConfig(),  # noqa: B008
) -> None:
    """Measure a run (base and unlearned; results go into it) or one model. What is measured already is not repeated.

    Parameters
    ----------
    target
        A run directory, or a model: demo, a local folder, a hub id.
    questions
        NAME=SOURCE: multiple-choice questions (question, choices, answer as index or letter); repeat for several sets.
    text
        NAME=SOURCE: text whose negative log-likelihood per token is measured; repeat for several sets.
    prompts
        NAME=SOURCE: prompts to answer greedily; repeat for several sets.
    out
        Where results go when the target is a model.
    trust_remote_code
        Run the code that comes with the model. Read it first.
    allow_pickle
        Read pickle checkpoints, which can run code. Safetensors need no flag.
    """
    from misdirect import api

    rows = api.evaluate(
        target,
        pairs("--questions", questions),
        pairs("--text", text),
        pairs("--prompts", prompts),
        settings,
        out,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    print_table(rows)
    say_next(f"misdirect report {shlex.quote(str(out or target))}")


@app.command
def report(run: Path) -> None:
    """Write report.html, one self-contained page, from the results in a run directory.

    Parameters
    ----------
    run
        A run directory, or the --out folder of an evaluation.
    """
    from misdirect import api

    page = api.report(run)
    print(f"The page: {page}")
    say_next(f"open {shlex.quote(str(page))}", tool=False)


def say_next(command: str, tool: bool = True) -> None:
    print(f"Next: {command}" if tool else f"Open it in a browser: {Path(shlex.split(command)[1]).resolve().as_uri()}")


SHORT = {"cloze_accuracy": "cloze", "letter_accuracy": "letter", "nll_per_token": "NLL"}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The headline rows, base beside unlearned, with 95 % intervals and the paired change."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("set", "metric", "base", "unlearned", "change (95 %)", "floor", "n"):
        table.add_column(title, justify="left" if title in ("set", "metric") else "right")
    sets = dict.fromkeys((r["measurement"], r["set"], r["metric"]) for r in rows if r.get("headline"))
    for key in sets:
        found = {r["model"]: r for r in rows if (r["measurement"], r["set"], r["metric"]) == key and not r["attack"]}
        if "base" not in found:
            continue
        percent = key[0] == "mcq"
        base, other = found["base"], found.get("unlearned")
        table.add_row(
            escape(key[1]),
            SHORT.get(key[2], escape(key[2])) + ("" if base.get("base_knows", True) else ", base at chance"),
            interval(base, percent),
            interval(other, percent) if other else "-",
            change(other, percent) if other else "-",
            f"{100 * base['floor']:.1f} %" if "floor" in base else "",
            str(base["n"]),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def interval(row: dict[str, Any], percent: bool) -> str:
    if row.get("value") is None:
        return "not a number"
    if row.get("low") is None:
        return f"{row['value']:.3f}"
    if percent:
        return f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def change(row: dict[str, Any], percent: bool) -> str:
    paired = row.get("paired")
    if not paired or paired.get("low") is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    value, low, high = (f"{scale * paired[key]:+.{digits}f}" for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def config_tokens(path: Path, given: Sequence[str]) -> list[str]:
    """A YAML mapping of flags as command-line tokens, those that the command line gives itself left out.

    `forget`, `retain`, `questions`, ... may be lists of NAME=SOURCE or mappings {NAME: SOURCE}.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}; expected a YAML file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"--config {path} holds no mapping; expected lines such as updates: 150")
    tokens: list[str] = []
    names = {token.partition("=")[0] for token in given}
    if given[1:2] and not given[1].startswith("-"):  # what stands behind the verb: it wins like a flag
        names |= {"--model", "--target", "--run"}
    for key, value in data.items():
        flag = "--" + key.replace("_", "-")
        if flag in names:
            continue
        if isinstance(value, dict):
            value = [f"{name}={source}" for name, source in value.items()]
        if isinstance(value, bool):
            tokens += [flag] if value else []
        elif value is not None:
            for one in value if isinstance(value, list) else [value]:
                tokens += [f"{flag}={one}"]
    return tokens


def expand_config(argv: list[str]) -> list[str]:
    """Replaces `--config FILE` by the file's flags, put behind the verb; `model: X` in the file is the MODEL."""
    for index, token in enumerate(argv):
        name, equals, value = token.partition("=")
        if name == "--config":
            if not equals and index + 1 == len(argv):
                raise ValueError("--config has no file; expected --config FILE")
            rest = argv[:index] + argv[index + (1 if equals else 2) :]
            return rest + config_tokens(Path(value if equals else argv[index + 1]), rest)
    return argv


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: exit code 0, 2 for bad input, 130 when interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        tokens = expand_config(given)
        app(tokens or ["--help"], exit_on_error=False, print_error=False, result_action="return_value")
    except BrokenPipeError:
        return 1
    except (CycloptsError, ValueError, OSError) as error:  # OSError: a full disk, a folder that may not be written to
        return complain(str(error))
    except KeyboardInterrupt:
        print("\nmisdirect: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def complain(message: str) -> int:
    line = " ".join(message.split())
    print(f"misdirect: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
