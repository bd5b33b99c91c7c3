"""`README.md` of a run: a Hugging Face model card with the numbers of `report.html`.

Names, hashes, settings and scores alone: no question, prompt, answer or text is ever in it, so that it can be published.
The metadata is the hub's own (a `model-index` among it); what is not known, such as the license of a model that does not
state its own, is left out. Everything that came from outside is written as character references where Markdown or HTML
would read it as markup.

    card(Path("runs/demo"))  # -> runs/demo/README.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from misdirect import runs, storage
from misdirect.data import builtin
from misdirect.data.demo.fetch import HUB_ID
from misdirect.data.sources import split_column
from misdirect.progress import note
from misdirect.reporting import wording
from misdirect.reporting.content import audit_card, metrics, setup
from misdirect.reporting.content.form import Table, in_line
from misdirect.reporting.load.run import QUESTIONS, Run, read_run
from misdirect.reporting.redact import public_name
from misdirect.text import clean

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
MARK = "<!-- `misdirect report` writes this file anew each time. Take this line out, and it leaves the file alone. -->"
TAGS = ("unlearning", "machine-unlearning")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# what Markdown, HTML, and the hub's formulas, mentions and emoji could take for markup
MARKUP = re.compile(r"[\\`*{}\[\]<>#|~&$@]|:(?=//)|:(?=[\w+-]+:)|(?<=www)\.|(?<=-)-", re.IGNORECASE)
MAX_CHANGES = 30  # rows of the collateral table
MAX_TEXT = 500  # characters of one piece of text from outside


class File(NamedTuple):
    """A file of the run, and whether it may leave the house."""

    name: str
    what: str
    publish: str


FILES = (
    File(runs.DELTA, "the change: the trained matrices' new values, under their names in the full model", "yes"),
    File(CARD, "this card", "yes"),
    File(runs.SUMMARY, "every number as one flat list", "yes"),
    File(runs.REPORT, "the page; it shows questions and answers where --show-text was given", "look first"),
    File(runs.CONFIG, "settings, hashes, and sources as they were typed, local paths among them", "look first"),
    File(runs.AUDIT, "the audit: sources as they were typed, settings, what was run and what was not", "look first"),
    File(runs.CONTROL, "the control vectors: they hand an attacker the direction", "never"),
    File(runs.CHECKPOINT, "an unfinished run, the control vectors in it", "never"),
    File(
        "results",
        "records by question id; of prompts with prompts and answers, of attacks with texts they found",
        "look first",
    ),
)


def card(run: Path) -> Path:
    """Writes `README.md` into a run directory and returns its path; one that misdirect did not write stays as it is.

    Raises ValueError where `run` is no run of `misdirect unlearn`.
    """
    if not runs.is_run(run):
        raise ValueError(f"{run} is not a run (no {runs.CONFIG}); expected a folder that `misdirect unlearn` wrote")
    path = run / CARD
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        note(f"{path} was not written by misdirect, or no longer says so; it stays as it is")
        return path
    storage.write_text(path, render(read_run(run), run))
    return path


def exported(run: Path, form: str, lines: Sequence[str]) -> str:
    """The card of an export: the same, with how to use what the folder holds and `lines` on what it is."""
    return render(read_run(run), run, Use(form, lines))


class Use(NamedTuple):
    """What a folder holds (`delta`, `full` or `adapter`), and what is said of it."""

    form: str = "delta"
    lines: Sequence[str] = ()


def render(run: Run, folder: Path, use: Use = Use()) -> str:  # noqa: B008 - never changed
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # this is Markdown; `finalize` escapes whatever is not marked as ours
        finalize=lambda shown: shown if isinstance(shown, Ours) else plain(str(shown)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md.j2").render(view(run, folder, use))
    return f"---\n{front_matter(run)}\n---\n{MARK}\n\n{text}"


class Ours(str):
    """Text that is Markdown already."""


def plain(text: str) -> str:
    """Text that stays text in Markdown and HTML, on one line.

    >>> plain("a|b <script>")
    'a&#124;b &#60;script&#62;'
    """
    line = re.sub(r"[^\S\u00a0]+", " ", clean(text)).strip()
    line = line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "\u2026"
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", line).replace("_", "\\_")


def table(data: Table) -> Ours:
    """A Markdown table; empty where there are no rows."""
    lines = [data.head, ["---"] * len(data.head), *([plain(in_line(cell)) for cell in row.cells] for row in data.lines)]
    return Ours("\n".join(f"| {' | '.join(line)} |" for line in lines) if data.rows else "")


def fenced(code: str, language: str) -> Ours:
    """A code block whose fence is longer than any that stands in the code."""
    longest = max((len(found) for found in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return Ours(f"{fence}{language}\n{code.rstrip()}\n{fence}")


# ------------------------------------------------------------------------------------------------ what the hub reads


def front_matter(run: Run) -> str:
    """The card's metadata as YAML, in the hub's own shape."""
    from huggingface_hub import ModelCardData

    base = base_model(run.model)
    tags = [*TAGS, run.method, "misdirect"]
    results = eval_results(run)
    data = ModelCardData(base_model=base, datasets=datasets(run) or None, eval_results=results or None, tags=tags,
                         library_name="misdirect", pipeline_tag="text-generation",
                         model_name=one_line(title(run)) if results else None,
                         base_model_relation="finetune" if base else None, **stated(run.model))  # fmt: skip
    return data.to_yaml()


def base_model(model: str) -> str | None:
    """The hub's name of the base, or None where the base is a local folder."""
    if model == "demo":
        return HUB_ID
    return model if HUB_NAME.fullmatch(model) and not Path(model).exists() else None


def stated(model: str) -> dict[str, Any]:
    """License and language as the base itself states them: in its folder's own card."""
    if model == "demo":
        return {"license": "apache-2.0", "language": ["en"]}  # as its package and its page on the hub state
    theirs = own_card(Path(model).expanduser())
    license_id, language = theirs.get("license"), theirs.get("language")
    found: dict[str, Any] = {}
    if isinstance(license_id, str) and LICENSE.fullmatch(license_id):
        found["license"] = license_id
        for key in ("license_name", "license_link") if license_id == "other" else ():
            if isinstance(theirs.get(key), str):
                found[key] = one_line(theirs[key])
    languages = language if isinstance(language, list) else [language]
    if languages and all(isinstance(one, str) and LANGUAGE.fullmatch(one) for one in languages):
        found["language"] = languages
    return found


def own_card(folder: Path) -> Mapping[str, Any]:
    """The metadata of a model folder's own card; empty where there is none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def datasets(run: Run) -> list[str]:
    """The hub's names of the data sets that were forgotten and retained."""
    sources = [row.source or "" for row in run.config.topics] + [row.source or "" for row in run.config.retain]
    return list(dict.fromkeys(found for source in sources if (found := dataset_of(source))))


def dataset_of(source: str) -> str | None:
    name = split_column(source)[0]
    if name.startswith("hub:"):
        name = name.split(":")[1]
        return name if HUB_NAME.fullmatch(name) else None
    found = builtin.HUB_SETS.get(builtin.canonical(name))
    return found.dataset if found else None


def eval_results(run: Run) -> list[EvalResult]:
    """The headline numbers of the unlearned model; those of the base, and what bounds them, stand under `args`."""
    from huggingface_hub import EvalResult

    results = []
    for pair in run.headlines(*QUESTIONS, "nll"):
        row = pair.unlearned
        if row is None or row.value is None:
            continue
        limits = {"low": row.low, "high": row.high, "n": row.n, "chance": row.chance, "floor": row.floor}
        known = {key: round(x, 6) for key, x in (limits | {"base": pair.before}).items() if x is not None}
        name = one_line(pair.set)
        results.append(
            EvalResult(
                task_type="multiple-choice" if pair.measurement == "mcq" else "text-generation",
                dataset_name=name,
                dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed",
                metric_type="accuracy" if wording.is_share(pair.metric) else pair.metric,
                metric_name=wording.metric_label(pair.metric),
                metric_value=round(row.value, 6),
                metric_args={"set": pair.kind, **known},
            )
        )
    return results


def one_line(text: str) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "\u2026"


# ------------------------------------------------------------------------------------------------ what people read


def view(run: Run, folder: Path, use: Use) -> dict[str, Any]:
    """All that the template shows. A `str` is escaped there; `Ours` is Markdown."""
    kept = [change for change in run.changes if change.kind != "forget"]
    chosen = run.config.chosen
    topics = wording.listed(run.topics) or "the topic"
    there = [file for file in FILES if file.name in (CARD, runs.REPORT) or (folder / file.name).exists()]
    there = [] if use.lines else there  # an export holds nothing but what may be published
    return {
        "title": title(run),
        "base": base_name(run.model),
        "method": Ours(wording.method_name(run.method)),
        "did": wording.method_did(run.method, topics, wording.setting(chosen.block)),
        "topics": topics,
        "done": setup.done(run),
        "unfinished": not (folder / runs.DELTA).is_file(),
        "measured": sorted({r.model for r in run.results}),
        "audit": audit_view(run),
        "forgotten": table(metrics.questions(run, "forget")),
        "kept": table(metrics.questions(run, "retain")),
        "texts": table(metrics.texts(run)),
        "seeds": table(metrics.seeds(run)),
        "changes": table(metrics.worst(kept[:MAX_CHANGES])),
        "more_changes": max(0, len(kept) - MAX_CHANGES),
        "num_changed": sum(change.changed for change in kept),
        "num_changes": len(kept),
        "unknown": wording.listed([pair.set for pair in run.headlines(*QUESTIONS) if not pair.base_knows]),
        "answers": table(metrics.answers(run)),
        "strengths": table(setup.strengths(run)),
        "settings": setup.settings_in_words(run),
        "trained": wording.listed(chosen.trained),
        "data": table(setup.data(run)),
        "form": use.form,
        "said": use.lines,
        "apply": fenced(HOW[use.form](run.model), "python"),
        "command": fenced(run.config.command or "", "sh"),
        "files": table(Table(("File", "What it is", "Publish"), there)),
        "is_demo": run.is_demo,
        "model_hash": run.config.data.model_sha256 or "",
        "versions": ", ".join(f"{name} {version}" for name, version in run.env.versions.items()),
    }


def audit_view(run: Run) -> dict[str, Any] | None:
    found = audit_card.view(run.audit) if run.audit else None
    return found and found | {"attacks": table(found["attacks"])}


def base_name(model: str) -> str:
    """The base without the folders above it, which say more of a machine than of a model."""
    if model == "demo":
        return HUB_ID.rpartition("/")[2]
    if base_model(model):
        return model
    return Path(model).name or model or "the base model"


def title(run: Run) -> str:
    return f"{base_name(run.model).rpartition('/')[2]} with {wording.listed(run.topics) or 'a topic'} unlearned"


def apply_code(model: str) -> str:
    """Python that puts the change into the base model."""
    lines = (
        "from pathlib import Path",
        "import torch",
        "from misdirect.data.tokens import token_ids",
        "from misdirect.model.delta import load_delta, swapped_in",
        "from misdirect.model.load import load_lm",
        "",
        f"lm = load_lm({json.dumps(public_name(model), ensure_ascii=False)})  # the base model",
        'delta = load_delta(Path("delta.safetensors"))',
        "with swapped_in(delta, lm.model):  # the unlearned model; outside, the base again, bit for bit",
        '    prompt = torch.tensor(token_ids(lm.tokenizer, ["The capital of France is"]), device=lm.device)',
        "    answer = lm.model.generate(prompt, max_new_tokens=20, do_sample=False)",
        "print(lm.tokenizer.decode(answer[0]))",
    )
    return "\n".join(lines)


def whole_code(model: str) -> str:
    return "\n".join(LOADED).format(name="FOLDER")


def adapter_code(model: str) -> str:
    base = json.dumps(public_name(model), ensure_ascii=False)
    lines = [
        "from peft import PeftModel",
        *LOADED,
        'model = PeftModel.from_pretrained(model, "FOLDER")  # model.disable_adapter() is the base again',
    ]
    return "\n".join(lines).format(name=base.strip('"'))


LOADED = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("{name}")',
    'tokenizer = AutoTokenizer.from_pretrained("{name}")',
)
HOW: Mapping[str, Callable[[str], str]] = {"delta": apply_code, "full": whole_code, "adapter": adapter_code}
