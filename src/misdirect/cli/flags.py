"""What stands on the command line and in a `--config` file, as data: pairs, weights, values per topic, YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from misdirect.config import Corpus


def pair(flag: str, text: str) -> tuple[str, str]:
    """`NAME=SOURCE` -> (NAME, SOURCE). Raises ValueError that says what to type."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(
            f"{flag} {text!r} is not a pair; expected {flag} NAME=SOURCE, such as {flag} biology=bio.jsonl"
        )
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
    common: str | None = None
    own: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            if common is not None:
                raise ValueError(f"{flag} was given twice for all topics ({common} and {text}); expected it once")
            common = text
        elif name not in topics:
            raise ValueError(f"{flag} {text} names no topic; expected one of {', '.join(topics)}")
        elif name in own:
            raise ValueError(f"{flag} was given twice for {name} ({own[name]} and {value}); expected it once")
        else:
            own[name] = value
    return common, own


def number(flag: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ValueError(f"{flag} {text!r} is not a number; expected one such as 100") from None


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


# What may stand behind a verb without its flag
POSITIONAL = {"unlearn": "--model", "plan": "--model", "evaluate": "--target", "report": "--run"}


def read_config(path: Path) -> dict[str, Any]:
    """A YAML mapping of flags. Raises ValueError where it is something else. No tag makes an object, and no code is run."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}; expected a YAML file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise ValueError(f"--config {path} is nested too deep; expected lines such as updates: 150") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"--config {path} holds no mapping; expected lines such as updates: 150")
    return data


def config_values(key: str, value: Any, path: Path) -> list[str]:
    """What a key of the file is given on the command line: a value, several, or NAME=SOURCE for each of a mapping."""
    if isinstance(value, dict):
        found = [(f"{name}=", source) for name, source in value.items() if isinstance(name, str)]
        whole = len(found) == len(value)
    else:
        found = [("", one) for one in (value if isinstance(value, list) else [value])]
        whole = True
    if not whole or any(isinstance(one, dict | list | set | tuple | bytes) for _, one in found):
        raise ValueError(
            f"--config {path}: {key!r} is nested; expected a value, a list of values, or NAME: SOURCE lines"
        )
    return [f"{name}{one}" for name, one in found if one is not None]


def config_tokens(path: Path, given: Sequence[str]) -> list[str]:
    """A YAML mapping of flags as command-line tokens, those that the command line gives itself left out.

    `forget`, `retain`, `questions`, ... may be lists of NAME=SOURCE or mappings {NAME: SOURCE}.
    """
    tokens: list[str] = []
    names = {token.partition("=")[0] for token in given}
    if given[1:2] and not given[1].startswith("-"):  # what stands behind the verb: it wins like a flag
        names.add(POSITIONAL.get(given[0], ""))
    for key, value in read_config(path).items():
        flag = "--" + key.replace("_", "-")
        if flag in names:
            continue
        if isinstance(value, bool):
            tokens += [flag] if value else []
        else:
            tokens += [f"{flag}={one}" for one in config_values(key, value, path)]
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
