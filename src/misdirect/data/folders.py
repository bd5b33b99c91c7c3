"""A folder as SOURCE: all its files, or, laid out as data sets of the hub are, one split of one config.

Laid out so is a folder whose README names `configs` with `data_files`, one with shards such as
`data/test-00000-of-00001.parquet`, one whose files are of two or more splits (`train.jsonl` beside `test.jsonl`,
`dev/` beside `test/`), MMLU's original among them, a snapshot in the hub's own cache, and what `save_to_disk` of
`datasets` wrote. To read all of it would ask training questions, and most questions twice, since such a folder often has
all its subjects once more in `all`. `FOLDER:CONFIG:SPLIT` names another part, as `hub:` does; so does the path of a
sub-folder or file.

Any other folder is all its files at any depth, in the order of their names. Left out of both: hidden files and folders,
and, beside tables, what tells about the data (README, LICENSE, dataset_infos.json, ...). A link to a file is followed, since
that is what a hub cache is made of; a link to a folder is not.

>>> for group in groups(Path("mmlu-clone"), "", "", QUESTIONS): print(group.where)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from misdirect.data.dataset_card import card_configs, matching, patterns
from misdirect.data.demo.sets import MMLU_SUBJECTS
from misdirect.data.files import SUFFIXES, TABLES, Group, Row, file_rows, kind
from misdirect.data.splits import WORDS, Order, pick, word_of
from misdirect.progress import note
from misdirect.text import listed, reason, shown

NOT_DATA = ("readme", "license", "licence", "dataset_infos", "dataset_info", "dataset_dict", "croissant")
SHARD = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?")
WHOLE = ("default", "all")  # configs that stand for the whole set
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")


class Part(NamedTuple):
    """A file, and what of the data set it holds; "" where its place does not say."""

    path: Path
    config: str = ""
    split: str = ""
    sharded: bool = False


class Layout(NamedTuple):
    """A folder laid out as hub data sets are. `strict`: its configs are sets of their own, never read together."""

    folder: Path
    parts: tuple[Part, ...]
    strict: bool
    default: str
    strays: tuple[Path, ...]


def folder_files(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.rglob("*") if kind(path) in SUFFIXES and path.is_file()]
    except OSError as error:
        raise ValueError(f"the folder {shown(folder)} cannot be read: {reason(error)}") from None
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if any(kind(path) in TABLES for path in files):
        files = [path for path in files if not about_data(path)]
    return files


def about_data(path: Path) -> bool:
    name = path.name.split(".")[0].lower()
    return (
        name in NOT_DATA
        or (name == "state" and (path.parent / "dataset_info.json").is_file())
        or (path.suffix == ".arrow" and name.startswith("cache-"))  # `datasets`' copies of what was computed
    )


def groups(folder: Path, config: str, split: str, order: Order, columns: Sequence[str] = ()) -> Iterator[Group]:
    """The folder's rows, file by file. Raises ValueError where a config or split has to be named, or is not there."""
    if is_saved(folder):
        yield from saved_groups(folder, config or split, order)
        return
    found = selected(folder, config, split, order)
    seen: dict[int, str] | None = {} if len({part.config for part in found}) > 1 else None
    for part in found:
        rows = part_rows(part, columns)
        whole = kind(part.path) not in TABLES
        yield Group(shown(part.path), rows if seen is None else once(rows, part, seen), whole)


def files_of(folder: Path, config: str, split: str, order: Order) -> list[Path]:
    return [part.path for part in selected(folder, config, split, order)]


def selected(folder: Path, config: str = "", split: str = "", order: Order = ()) -> list[Part]:
    """The folder's files, those of one config and split alone where it is laid out so, which is then said."""
    folder = snapshot(folder)
    found = layout(folder)
    if found is not None:
        return chosen(found, config, split, order)
    if config or split:
        raise ValueError(f"the folder {shown(folder)} has no configs or splits to choose from; expected its name alone")
    files = folder_files(folder)
    if not files:
        raise ValueError(f"the folder {shown(folder)} holds no {', '.join(SUFFIXES)} file")
    return [Part(path) for path in files]


def snapshot(folder: Path) -> Path:
    """The one revision that a folder of the hub's cache holds (`datasets--OWNER--NAME`); any other folder as it is."""
    if not ((folder / "snapshots").is_dir() and (folder / "refs").is_dir()):
        return folder
    main = folder / "refs" / "main"
    named = folder / "snapshots" / main.read_text(errors="replace").strip() if main.is_file() else None
    if named is not None and named.is_dir():
        return named
    there = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if len(there) != 1:
        raise ValueError(
            f"{shown(folder)} holds {len(there)} revisions; expected one of them: {shown(folder)}/snapshots/REVISION"
        )
    return there[0]


def layout(folder: Path) -> Layout | None:
    """None for a folder that is all its files."""
    files = folder_files(folder)
    if declared := card_layout(folder, files):
        return declared
    parts = [part_of(path, folder) for path in files if not about_data(path)]
    tables = [part for part in parts if kind(part.path) in TABLES]
    named = [part for part in tables or parts if part.split]
    splits = {part.split for part in named}
    sharded = any(part.sharded for part in named)
    if not splits & WORDS or not (sharded or len(splits) > 1) or (not tables and len(named) < len(parts)):
        return None
    strays = tuple(part.path for part in parts if not part.split or part not in named)
    return Layout(folder, tuple(named), sharded, "", strays)


def part_of(path: Path, folder: Path) -> Part:
    """A file's config and split by its place and name: `CONFIG/SPLIT-00000-of-00001.parquet`, `data/SPLIT-..`, `SPLIT/x.csv`."""
    folders = list(path.relative_to(folder).parts[:-1])
    stem = path.name
    while Path(stem).suffix.lower() in (".gz", *SUFFIXES):
        stem = Path(stem).stem
    shard = SHARD.fullmatch(stem)
    name = shard[1] if shard else stem
    above = next((part for part in reversed(folders) if part.casefold() in WORDS), None)
    if name.casefold() in WORDS or above is None:
        split = word_of(name) or (name if shard else "")
    else:
        split = above.casefold()
    if above is not None and above.casefold() == split:
        folders.remove(above)
    if folders[:1] == ["data"]:
        folders = folders[1:]
    return Part(path, "/".join(folders), split, shard is not None)


def card_layout(folder: Path, files: Sequence[Path]) -> Layout | None:
    """The configs that the README's head declares, as far as their files are here."""
    declared = card_configs(folder / "README.md")
    here = set(files)
    parts: list[Part] = []
    default = ""
    for one in declared:
        config = str(one.get("config_name") or "default")
        home = str(one.get("data_dir") or "").strip("/")
        for split, pattern in patterns(one.get("data_files")):
            inside = f"{home}/{pattern}" if home else pattern
            parts += [Part(path, config, split) for path in matching(folder, inside) if path in here]
        default = config if one.get("default") is True else default
    declared_files = {part.path for part in parts}
    strays = tuple(path for path in files if path not in declared_files and not about_data(path))
    return Layout(folder, tuple(dict.fromkeys(parts)), True, default, strays) if parts else None


def chosen(found: Layout, config: str, split: str, order: Order) -> list[Part]:
    """The parts of one config and split. Raises ValueError that names those there are."""
    configs = names_of(part.config for part in found.parts)
    if config and not split and config not in configs:  # FOLDER:SPLIT
        config, split = "", config
    if config and config not in configs:
        raise ValueError(
            f"{shown(found.folder)} has no config {shown(config, 60)!r}; expected one of {listed(configs)}"
        )
    splits = names_of(part.split for part in found.parts if config in ("", part.config or "default"))
    if split and split not in splits:
        raise ValueError(f"{shown(found.folder)} has no split {shown(split, 60)!r}; expected one of {listed(splits)}")
    given, split = split, split or pick(splits, order) or ""
    if not split:
        raise ValueError(
            f"{shown(found.folder)} has the splits {listed(splits)}; expected one of them: {typed(found, config, splits[0])}"
        )
    fit = [part for part in found.parts if part.split == split and config in ("", part.config or "default")]
    kept = fit if config else whole(found, fit, split)
    if not given:
        say(found, kept, split)
    return kept


def of_config(found: Layout, names: Iterable[str]) -> list[Part]:
    """All splits of the first of these configs that is there, or of the one that stands for all; else everything."""
    configs = names_of(part.config for part in found.parts)
    name = next((name for name in (*names, found.default, *WHOLE) if name in configs), None)
    return [part for part in found.parts if name is None or (part.config or "default") == name]


def names_of(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name or "default" for name in names))


def whole(found: Layout, parts: list[Part], split: str) -> list[Part]:
    """The parts of the config that stands for all, or of all configs where no one does and they are one set's subjects."""
    configs = names_of(part.config for part in parts)
    name = next((name for name in (found.default, *WHOLE) if name in configs), None)
    if name is not None:
        return [part for part in parts if (part.config or "default") == name]
    if len(configs) > 1 and found.strict and not set(configs) <= {*MMLU_SUBJECTS}:
        raise ValueError(
            f"{shown(found.folder)} has the configs {listed(configs)}; expected one of them: {typed(found, configs[0], split)}"
        )
    return parts


def typed(found: Layout, config: str, split: str) -> str:
    return f"{shown(found.folder)}:{config}:{split}"


def say(found: Layout, kept: Sequence[Part], split: str) -> None:
    """What is read, where that is not all there is."""
    if len(kept) == len(found.parts) and not found.strays:
        return
    configs = names_of(part.config for part in kept)
    several = len(names_of(part.config for part in found.parts)) > 1
    which = f" of config{'s' * (len(configs) > 1)} {listed(configs)}" if several else ""
    splits = [name for name in names_of(part.split for part in found.parts) if name != split]
    others = f"; not {listed(splits)}" if splits else ""
    left = f"; {len(found.strays)} file(s) of no split are left out" if found.strays else ""
    note(
        f"{shown(found.folder)}: split {split}{which} is read{others}{left} "
        f"({typed(found, 'CONFIG' if several else '', 'SPLIT')} names another)"
    )


def part_rows(part: Part, columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of one file; of MMLU's own without a header with their columns' names, of a subject's with the subject."""
    subject = part.config if part.config in MMLU_SUBJECTS else ""
    if is_mmlu_original(part):
        subject = re.sub(rf"_{re.escape(part.split)}$", "", part.path.name.partition(".")[0])
        rows = file_rows(part.path, columns, MMLU_COLUMNS)
    else:
        rows = file_rows(part.path, columns)
    for row in rows:
        yield {**row, "subject": subject} if subject and not row.get("subject") and "question" in row else row


def is_mmlu_original(part: Part) -> bool:
    """`test/anatomy_test.csv`, six fields and no header: question, four choices, a letter."""
    if part.path.parent.name.casefold() != part.split or kind(part.path) != ".csv":
        return False
    try:
        first = next(file_rows(part.path, (), MMLU_COLUMNS), {})
    except ValueError:  # more fields: whatever else it is
        return False
    return first.get("answer") in ("A", "B", "C", "D") and first.get("question") != "question"


def once(rows: Iterable[Row], part: Part, seen: dict[int, str]) -> Iterator[Row]:
    """The rows of one of several configs, less those that another config has held already, which is said."""
    left_out = 0
    for row in rows:
        key = hash(json.dumps({k: v for k, v in row.items() if k != "subject"}, sort_keys=True, default=str))
        if seen.setdefault(key, part.config) == part.config:
            yield row
        else:
            left_out += 1
    if left_out:
        note(f"{shown(part.path)}: {left_out} rows that another config holds too are left out")


# ---- what `save_to_disk` of `datasets` wrote


def is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def saved_groups(folder: Path, split: str, order: Order) -> Iterator[Group]:
    import datasets

    where = shown(folder)
    try:
        found: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files raise dozens of kinds
        raise ValueError(f"{where} is not readable as saved by `datasets`: {reason(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        name = split or pick(found, order) or ""
        if name not in found:
            came = f"has no split {shown(split, 60)!r}" if split else "has several splits"
            raise ValueError(
                f"{where} {came}; expected one of {listed(list(found))}: {where}:{next(iter(found), 'SPLIT')}"
            )
        if len(found) > 1:
            note(
                f"{where}: split {name} is read; not {listed([s for s in found if s != name])} ({where}:SPLIT names another)"
            )
        found = found[name]
    elif split:
        raise ValueError(f"{where} has no splits to choose from; expected its name alone")
    yield Group(where, saved_rows(found.with_format(None), where))


def saved_rows(table: Any, where: str) -> Iterator[Row]:
    try:
        for row in table:
            yield dict(row)
    except Exception as error:  # a picture that cannot be decoded, a damaged file
        raise ValueError(f"{where} cannot be read: {reason(error)}") from None
