"""Pages, cards, terminal tables and `summary.json` of made-up runs, byte by byte: `tests/golden/sha256.json` holds hashes.

Drawings are not drawn (another matplotlib draws another text): their titles and descriptions stand in their place.
`GOLDEN=FOLDER pytest tests/test_golden.py` writes the texts into a folder, to look at what has changed, and
`GOLDEN=new` the hashes anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from audit_data import (
    about,
    entry,
    everything,
    full_audit,
    pair_audit,
    save_attack,
    save_none,
    save_strongest,
    unattacked,
)
from misdirect import runs, storage
from misdirect.cli.output import print_audit, print_table
from misdirect.reporting import compare, report
from misdirect.reporting.card import card
from misdirect.reporting.figures import catalogue
from misdirect.reporting.figures.style import Picture
from misdirect.runs import Metric, Result
from misdirect.runs.collateral import topics_of
from misdirect.runs.seeds import over_seeds
from report_data import full_run, save_answers, save_mcq, save_nll, small_run, write_config, write_log

HASHES = Path(__file__).parent / "golden" / "sha256.json"
ENV = {"python": "3.11.9", "cores": 2, "versions": {"misdirect": "0.1.0", "torch": "2.13.0"}, "command": "misdirect x"}


def one_side(folder: Path) -> Path:
    """The folder of an evaluation of the base: a set with an interval, a text without one."""
    row = Metric("cloze_accuracy", 0.625, 0.03, 200, 0.575, 0.675, 0.25, 0.315, headline=True, base_knows=True)
    runs.save_result(folder, "base", Result("mcq", "biology", {}, (row,), ()))
    save_nll(folder, "wikitext", 0.0, models=("base",))
    lonely = Metric("nll_per_token", 2.5, float("nan"), 1, float("nan"), float("nan"), headline=True)
    runs.save_result(folder, "base", Result("nll", "single", {}, (lonely,), ()))
    save_answers(folder, "questions", "What is a cell?", {"base": "A unit of life."})
    return folder


def rival(folder: Path) -> Path:
    """A run by NPO that is unfinished, of two topics, with names that are markup."""
    small_run(folder)
    topics = [{"name": "biology", "source": "/home/me/bio.jsonl"}, {"name": "a|b_<c>", "source": "hub:x/y:z"}]
    write_config(folder, method="npo", model="/home/me/llama", topics=topics, settings={"updates": 9, "lr": 1e-4})
    write_log(folder, ("biology", "a|b_<c>"), 5)
    save_mcq(folder, "a|b_<c>", 0.6, 0.45)
    save_mcq(folder, "physics", 0.604, 0.6, sha256="b2")
    return folder


def two_sets(folder: Path) -> Path:
    """An audit of two sets, one attack without a base, and no audit.json entry for another."""
    small_run(folder)
    unattacked(folder)
    save_none(folder)
    first, second, third = everything()[:3]
    save_attack(folder, first)
    save_attack(folder, second, models=["unlearned"])
    save_attack(folder, third._replace(name="other", kept=20), name="chemistry")
    save_strongest(folder, [[first.name, {"step": 20}], [first.name, {"step": 100}]], share=0.02)
    record = about([entry(first), entry(second)])
    record["split"]["chemistry"] = {"tested": 80, "known": 80}
    for one in record["attacks"]:
        one.setdefault("settings", {})["models_sha256"] = {"base": "aa"}
    storage.write_json(folder / runs.AUDIT, record)
    return folder


MADE = {"full": full_run, "audit": full_audit, "pair": pair_audit, "one": one_side, "rival": rival, "two": two_sets}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every made-up run with its page, card and summary."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(catalogue, "inline", in_words)
        yield written(tmp_path_factory.mktemp("golden"))


def in_words(pictures: Mapping[str, Picture]) -> dict[str, str]:
    return {name: f"<svg>{name}: {one.title}: {one.description}</svg>" for name, one in pictures.items()}


def written(home: Path) -> Path:
    for name, make in MADE.items():
        run = make(home / name)
        if (run / runs.ENV).exists():
            storage.write_json(run / runs.ENV, ENV)
        runs.write_summary(run, over_seeds(run))
        if runs.is_run(run):
            card(run)
        report(run, show_text=name != "audit")
    nothing = home / "nothing"
    pair_audit(nothing, removed=False)
    report(nothing)
    report(home / "full", show_text=False).rename(home / "full" / "untold.html")
    report(home / "full", show_text=True)
    every = [home / name for name in ("full", "audit", "pair", "rival", "two")]
    compare(every, home / "comparison.html")
    return home


def texts(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[str, str]]:
    """Name -> text of everything that is written or printed."""
    for path in sorted(home.rglob("*")):
        if path.name in (runs.REPORT, "README.md", runs.SUMMARY, "comparison.html", "untold.html"):
            yield path.relative_to(home).as_posix(), path.read_text(encoding="utf-8")
    capsys.readouterr()
    for name in MADE:
        rows = storage.read_json(home / name / runs.SUMMARY)
        print_table(rows, topics_of(home / name))
        yield f"{name}/table", capsys.readouterr().out
        if (home / name / runs.AUDIT).exists():
            print_audit(rows, storage.read_json(home / name / runs.AUDIT), home / name)
            yield f"{name}/audit", capsys.readouterr().out


@pytest.mark.long
def test_every_byte_is_as_before(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dict(texts(home, capsys))
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()}
    where = os.environ.get("GOLDEN")
    if where == "new":
        storage.write_json(HASHES, hashes)
    elif where:
        for name, text in found.items():
            storage.write_text(Path(where) / name, text)
    expected = storage.read_json(HASHES)
    assert {name for name in expected | hashes if expected.get(name) != hashes.get(name)} == set()
