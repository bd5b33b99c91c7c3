"""Sets that have a name of their own: the questions and texts of the field, and the demo's.

| name | what it is |
|---|---|
| `wmdp-bio`, `wmdp-cyber`, `wmdp-chem` | WMDP questions (arXiv 2403.03218), cais/wmdp, split test |
| `wmdp-bio-forget`, `wmdp-bio-retain`, `wmdp-cyber-forget`, `wmdp-cyber-retain` | the paper's corpora, gated |
| `mmlu`, `mmlu-SUBJECT` | MMLU (arXiv 2009.03300), cais/mmlu, split test, all 57 subjects or one |
| `mmlu-dev` | MMLU's five examples a subject, for few-shot prompts |
| `wikitext`, `wikitext-validation`, `wikitext-test` | WikiText-2 raw: train to retain, the others to measure on |
| `demo-...` | see `misdirect.data.demo` |

The published code retains the lines of `wikitext-test`; a run that does so should measure on another split.

A local copy comes first: a file or folder `NAME.jsonl`, `NAME.parquet`, ... (any format that is read) in the folder
`$MISDIRECT_DATA`, with the columns of the original. So the same commands work without a network. A folder there may be a
clone of the data set (`mmlu`, `wmdp`, `wikitext`): the config and split of each name are taken out of it.

>>> next(iter(groups("mmlu-anatomy"))).rows      # rows with question, choices, answer, subject
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from misdirect.data import folders
from misdirect.data.demo.sets import MMLU_SUBJECTS, SETS
from misdirect.data.files import SUFFIXES, Group, Row
from misdirect.data.folders import Part
from misdirect.text import shown

FOLDER = "MISDIRECT_DATA"
FAMILIES = "demo-..., wmdp-..., mmlu, mmlu-SUBJECT, mmlu-dev, wikitext"


class HubSet(NamedTuple):
    """Where a set lies on the hub, and the subject that its rows lack and the field's prompt names."""

    dataset: str
    config: str
    split: str
    subject: str = ""


HUB_SETS: Mapping[str, HubSet] = MappingProxyType(
    {
        "wmdp-bio": HubSet("cais/wmdp", "wmdp-bio", "test", "biology"),
        "wmdp-cyber": HubSet("cais/wmdp", "wmdp-cyber", "test", "cybersecurity"),
        "wmdp-chem": HubSet("cais/wmdp", "wmdp-chem", "test", "chemistry"),
        "wmdp-bio-forget": HubSet("cais/wmdp-bio-forget-corpus", "", "train"),
        "wmdp-bio-retain": HubSet("cais/wmdp-corpora", "bio-retain-corpus", "train"),
        "wmdp-cyber-forget": HubSet("cais/wmdp-corpora", "cyber-forget-corpus", "train"),
        "wmdp-cyber-retain": HubSet("cais/wmdp-corpora", "cyber-retain-corpus", "train"),
        "mmlu": HubSet("cais/mmlu", "all", "test"),
        "mmlu-dev": HubSet("cais/mmlu", "all", "dev"),
        **{f"mmlu-{subject}": HubSet("cais/mmlu", subject, "test") for subject in MMLU_SUBJECTS},
        "wikitext": HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
        "wikitext-validation": HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", "validation"),
        "wikitext-test": HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    }
)


def canonical(name: str) -> str:
    """`mmlu-college-biology` -> `mmlu-college_biology`; any other name as it is."""
    underscored = "mmlu-" + name.removeprefix("mmlu-").replace("-", "_")
    return underscored if underscored in HUB_SETS else name


def is_name(name: str) -> bool:
    return canonical(name) in HUB_SETS or name in SETS


def names() -> tuple[str, ...]:
    return (*SETS, *HUB_SETS)


def similar(name: str) -> list[str]:
    """Built-in names that look like `name`."""
    return difflib.get_close_matches(name, names(), 3, 0.75) if len(name) < 60 else []


def groups(name: str) -> Iterator[Group]:
    """The rows of a built-in set. Raises ValueError that says what to do where it cannot be had."""
    if name in SETS:
        yield Group(name, SETS[name]())
        return
    name = canonical(name)
    found = HUB_SETS[name]
    copy = local_copy(name)
    if copy is not None:
        for part in copy:
            yield Group(shown(part.path), labeled(folders.part_rows(part), found))
    elif name.startswith("mmlu-") and found.split == "test" and local_copy("mmlu") is not None:
        subject = found.config.replace("_", " ")
        for group in groups("mmlu"):
            yield Group(group.where, (row for row in group.rows if row.get("subject") == subject))
    else:
        yield Group(name, hub_rows(name, found))


def hub_rows(name: str, found: HubSet) -> Iterator[Row]:
    from misdirect.data import hub

    instead = f"set {FOLDER} to a folder that holds {name}.jsonl"
    if name.startswith("mmlu"):
        instead += ", or demo-mmlu-dev" if found.split == "dev" else ", or demo-mmlu"
    return labeled(hub.rows(hub.Place(name, found.dataset, found.config, found.split, instead)), found)


def labeled(rows: Iterable[Row], found: HubSet) -> Iterator[Row]:
    """Rows with the subject that the prompt names: WMDP's field of knowledge, MMLU's subject without underscores."""
    for row in rows:
        subject = row.get("subject") or found.subject
        yield row | {"subject": subject.replace("_", " ")} if isinstance(subject, str) and subject else row


def local_copy(name: str) -> list[Part] | None:
    """The files of `$MISDIRECT_DATA` that hold a set, or None: its own copy, else a clone of the data set that it is part of.

    Raises ValueError where two files hold it, or the folder is none.
    """
    if not os.environ.get(FOLDER) or name not in HUB_SETS:
        return None
    folder = Path(os.environ[FOLDER]).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{FOLDER} is {shown(folder)}, which is not a folder; expected one, or the variable unset")
    found = HUB_SETS[name]
    own = copy_in(folder, name)
    if own is not None and own.is_dir():
        return parts_of(own, found)
    if own is not None:
        return [Part(own)]
    clone = copy_in(folder, found.dataset.partition("/")[2])
    if clone is None or not clone.is_dir() or not holds(clone, found):
        return None
    return parts_of(clone, found)


def copy_in(folder: Path, name: str) -> Path | None:
    found = [path for path in sorted(folder.glob(f"{name}*")) if is_copy(path, name)]
    if len(found) > 1:
        raise ValueError(f"{shown(folder)} holds both {found[0].name} and {found[1].name}; expected one of them")
    return found[0] if found else None


def parts_of(folder: Path, found: HubSet) -> list[Part]:
    """The set's config and split where the folder is laid out as hub data sets are, else all its files."""
    place = folders.layout(folders.snapshot(folder))
    if place is None:
        return folders.selected(folder)
    config = found.config if found.config in {part.config for part in place.parts} else ""
    return folders.chosen(place, config, "", (found.split,))


def holds(folder: Path, found: HubSet) -> bool:
    """Whether a clone has the very config and split."""
    place = folders.layout(folders.snapshot(folder))
    configs = {part.config for part in place.parts if part.split == found.split} if place else set()
    return bool(configs) and (not found.config or found.config in configs or found.config == "all")


def is_copy(path: Path, name: str) -> bool:
    rest = path.name.removeprefix(name).lower()
    return rest == "" if path.is_dir() else rest.removesuffix(".gz") in SUFFIXES
