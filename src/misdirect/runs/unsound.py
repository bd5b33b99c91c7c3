"""Stored results with a log-probability that is not finite, as older versions of misdirect wrote them (JSON: null).

They stay where they are and can be read, but nothing is concluded from them: no accuracy, no paired test, no recovered
share, no headline, no gate. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KEYS = (
    "logprob", "logprobs", "cloze_logprobs", "floor_logprobs", "letter_logprobs", "letter_permuted_logprobs", "scores",
    "nll", "nll_before",
)  # fmt: skip
INSIDE = ("points", "answers", "turns")  # lists of records in a record


def is_unsound(record: Any) -> bool:
    """Whether a record holds null where a number belongs, or an answer that ended because the model gave none."""
    if not isinstance(record, Mapping):
        return False
    if record.get("finite") is False or (record.get("base_tokens") and record.get("base_nll", 0.0) is None):
        return True
    if any(has_null(record[key]) for key in KEYS if key in record):
        return True
    inner = (record[key] for key in INSIDE if isinstance(record.get(key), list))
    return any(is_unsound(one) for rows in inner for one in rows)


def has_null(value: Any) -> bool:
    return value is None or (isinstance(value, list) and any(map(has_null, value)))


def num_unsound(result: Mapping[str, Any]) -> int:
    return sum(map(is_unsound, result.get("records", ())))


def complaint(path: Path, result: Mapping[str, Any]) -> str:
    """Which file, how many of its records, and what to type; empty for a sound result."""
    bad = num_unsound(result)
    return "" if not bad else (
        f"{path} holds no finite log-probability in {bad} of {len(result['records'])} records, so nothing is concluded from "
        "it; expected that file removed and the same command again: it is measured anew"
    )  # fmt: skip


def usable(results: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[list[dict[str, Any]], list[str]]:
    """(the results from which something may be concluded, a line for each file that is not sound).

    With a result of the base goes that of the other model, whose paired test and headline came from it; with one of an
    attack go the shares that came from it, and with the answers without attack all shares.
    """
    bad = {place(r): line for path, r in results if (line := complaint(path, r))}
    spoilt = {attack for attack, *_ in bad}

    def stands(result: Mapping[str, Any]) -> bool:
        attack, model, measurement, name = place(result)
        if {(attack, model, measurement, name), (attack, "base", measurement, name)} & bad.keys():
            return False
        if measurement != "recovered":
            return True
        return not spoilt & {"none", attack, *chosen(result)}

    return [result for _, result in results if stands(result)], list(bad.values())


def place(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(result[key] for key in ("attack", "model", "measurement", "set"))


def chosen(result: Mapping[str, Any]) -> Iterable[str]:
    """The attacks that the strongest one's number was taken from."""
    found = result["config"].get("chosen")
    return [str(pair[0]) for pair in found if isinstance(pair, list) and pair] if isinstance(found, list) else []
