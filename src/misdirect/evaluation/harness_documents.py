"""Documents of a harness task out of local files instead of the hub: SOURCE of `--tasks NAME=SOURCE`.

A file is the split that is asked; a folder holds a file or folder a split (`test.jsonl`, `dev/0.arrow`); for a group, a
folder holds such a folder a task (named by the task or by its part of the data set, as `anatomy`), or one file has a
column `subject`. `said` is what the task's YAML says.

    splits = local_splits("anatomy", {"dataset_name": "anatomy", "test_split": "test", "fewshot_split": "dev"})
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misdirect.data import folders
from misdirect.data.files import Row, file_rows
from misdirect.data.sources import read_rows
from misdirect.text import first_line


def evaluated_split(said: Mapping[str, Any]) -> str:
    return said.get("test_split") or said.get("validation_split") or "test"


def split_names(said: Mapping[str, Any]) -> list[str]:
    """The splits that a task's config names, the one that is asked first."""
    keys = ("test_split", "validation_split", "training_split", "fewshot_split")
    names = [evaluated_split(said), *(said.get(key) for key in keys), (said.get("fewshot_config") or {}).get("split")]
    return list(dict.fromkeys(name for name in names if name))


def group_splits(source: str, task: str, said: Mapping[str, Any]) -> dict[str, list[Row]]:
    """One task's part of a group's SOURCE: its folder, or the rows of its subject. None at all: {}."""
    names = [n for n in (said.get("dataset_name"), task, said.get("task_alias")) if n]
    path = Path(source).expanduser()
    if not path.is_dir():
        rows = [row for row in file_of_all(source) if row.get("subject") in names]
        return {evaluated_split(said): rows} if rows else {}
    folder = next((path / name for name in names if (path / name).is_dir()), None)
    return local_splits(str(folder), said) if folder else {}


file_of_all = functools.lru_cache(1)(read_rows)  # a group reads the same file for each of its tasks


def local_splits(source: str, said: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Split -> rows; a folder's files belong to the split that begins a part of their path: `test.jsonl`, `test/0.arrow`.

    Raises ValueError where the split that is asked is not there.
    """
    asked = evaluated_split(said)
    if not Path(source).expanduser().is_dir():
        return {asked: own_rows(read_rows(source), said)}
    folder = folders.snapshot(Path(source).expanduser())
    place = folders.layout(folder)  # of several configs the task's own, or the one that holds all
    parts = folders.of_config(place, [str(said.get("dataset_name"))]) if place else []
    out: dict[str, list[Row]] = defaultdict(list)
    for file in dict.fromkeys(part.path for part in parts) if place else folders.folder_files(folder):
        words = [re.split(r"[.-]", part)[0] for part in file.relative_to(folder).parts]
        split = next((name for name in split_names(said) if name in words), None)
        if split:
            out[split] += own_rows(list(file_rows(file)), said)
    if not out[asked]:
        raise ValueError(f"{source} holds no split {asked!r}; expected {asked}.jsonl (or .parquet, ..) or {asked}/")
    return dict(out)


def own_rows(rows: list[Row], said: Mapping[str, Any]) -> list[Row]:
    """Of rows of several subjects those of the task's own."""
    own = [row for row in rows if row.get("subject") == said.get("dataset_name")]
    return own or rows


def as_datasets(splits: Mapping[str, list[Row]], said: Mapping[str, Any], source: str) -> Any:
    """What `datasets` would have loaded. A split that is not there is empty, with the columns of the one that is asked."""
    import datasets

    try:
        tables = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    except Exception as error:  # pyarrow's kinds: columns of mixed types
        raise ValueError(f"{source} is not a table: {first_line(error)}; expected one type a column") from None
    empty = tables[evaluated_split(said)].select([])
    return datasets.DatasetDict({name: tables.get(name, empty) for name in split_names(said)})
