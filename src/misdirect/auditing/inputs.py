"""What an audit works on, read before a model is loaded: question sets, which of them were to be forgotten, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from misdirect import runs, storage
from misdirect.config import AuditConfig, doubtful, kind_of
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.corpora import read_passages, read_texts
from misdirect.data.fact_splits import Halves, drop_contaminated, split
from misdirect.data.questions import Question, read_questions
from misdirect.data.templates import check_letters, sample
from misdirect.progress import note

MIN_QUESTIONS = 20  # questions, below which an audit says little


@dataclass(frozen=True)
class AuditInputs:
    """Sets by name; texts of all sources of a kind together."""

    questions: Mapping[str, Sequence[Question]]  # as read
    forgotten: Mapping[str, Halves]
    retained: Mapping[str, Sequence[Question]]
    forget_texts: Sequence[str]
    retain_texts: Sequence[str]
    benign_texts: Sequence[str]


def read(
    questions: Mapping[str, str],
    forget: Mapping[str, str],
    retain: Mapping[str, str],
    texts: Mapping[str, str],
    topics: Sequence[str],
    config: AuditConfig,
) -> AuditInputs:
    """Every SOURCE, checked. Raises ValueError for a bad one, and where no question set belongs to a forgotten topic.

    Whole text files are passages of a sample's length: attack text goes by the passage where it states a tested fact.
    """
    if not questions:
        raise ValueError("nothing to ask; expected --questions NAME=SOURCE on what was to be forgotten")
    asked = {name: read_questions(source) for name, source in questions.items()}
    for items in asked.values():
        if config.formats != "cloze":
            check_letters(items)
    wanted = forgotten_names(list(asked), topics)
    whole = {name: split(sample(asked[name], config.limit, config.seed), config.seed) for name in wanted}
    halves = drop_contaminated(whole)
    for name, found in halves.items():
        told = len(whole[name].train) - len(found.train)
        if told:
            note(
                f"{name}: {told} of the attacker's {len(whole[name].train)} questions give a tested fact away and are left out"
            )
        if len(found.train) + len(found.test) < MIN_QUESTIONS:
            note(f"{name} has {len(found.train) + len(found.test)} questions, of which {len(found.test)} are measured: "
                 "the intervals will say how little that is")  # fmt: skip
    longest = CHARS_PER_TOKEN * config.max_tokens
    return AuditInputs(
        asked,
        halves,
        {name: sample(found, config.general, config.seed) for name, found in asked.items() if name not in wanted},
        *(
            [text for source in named.values() for text in read_passages(source, longest)]
            for named in (forget, retain, texts)
        ),
    )


def forgotten_names(names: Sequence[str], topics: Sequence[str]) -> list[str]:
    """The sets that are named like a forgotten topic; where no topic is known, the first."""
    if not topics:
        note(f"No topic is named, so {names[0]} is taken for what was to be forgotten (--forget NAME=SOURCE names it)")
        return [names[0]]
    for doubt in doubtful(names, topics):
        note(doubt)
    found = [name for name in names if kind_of(name, topics) == "forget"]
    if not found:
        raise ValueError(
            f"none of the question sets ({', '.join(names)}) is named like a forgotten topic ({', '.join(topics)}); "
            f"expected --questions {topics[0]}=SOURCE"
        )
    return found


def sources_of(run: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(forget, retain): name -> SOURCE, as the run was asked."""
    config = storage.read_json(run / runs.CONFIG)
    pick = lambda rows: {row["name"]: row["source"] for row in rows if isinstance(row.get("source"), str)}  # noqa: E731
    return pick(config["topics"]), pick(config["retain"])


def readable(sources: Mapping[str, str], what: str) -> dict[str, str]:
    """Those that can still be read; a run may be audited where its text is not."""
    found = {}
    for name, source in sources.items():
        try:
            read_texts(source)
        except ValueError as error:
            note(f"The {what} text {name} cannot be read here, so attacks with it are left out: {error}")
        else:
            found[name] = source
    return found
