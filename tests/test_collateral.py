"""The collateral map against hand-made rows, and Holm's correction against its definition."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from misdirect import stats
from misdirect.config import kind_of
from misdirect.runs.collateral import collateral


def rows(
    measurement: str, name: str, metric: str, difference: float, p: float | None = None, **more: Any
) -> list[dict[str, Any]]:
    shared = {"attack": None, "measurement": measurement, "set": name, "metric": metric, "n": 50} | more
    paired = {"difference": difference, "stderr": 0.02, "low": difference - 0.04, "high": difference + 0.04}
    if p is not None:
        paired["p_value"] = p
    return [
        {"model": "base", "value": 0.5, **shared},
        {"model": "unlearned", "value": 0.5 + difference, "paired": paired, **shared},
    ]


MADE = [
    *rows("mcq", "biology", "cloze_accuracy", -0.3, 1e-9, headline=True),
    *rows("mcq", "mmlu", "cloze_accuracy", -0.05, 0.001, headline=True),
    *rows("mcq", "mmlu", "cloze_accuracy_by_subject", -0.2, 0.01, subject="virology"),
    *rows("mcq", "mmlu", "cloze_accuracy_by_subject", 0.02, 0.9, subject="law"),
    *rows("mcq", "mmlu", "letter_accuracy_by_subject", -0.4, 0.0001, subject="law"),
    *rows("mcq", "mmlu", "letter_accuracy", -0.4, 0.0001, headline=False),
    *rows("nll", "wiki", "nll_per_token", 0.1, headline=True),
    *rows("nll", "history", "nll_per_token", 0.5, headline=True),
    *rows("generation", "answers", "repetition", 0.5, headline=True),
    *rows("nll", "alone", "nll_per_token", 0.0, headline=True)[:1],
]  # fmt: skip


def test_worst_first_with_subjects_instead_of_their_set() -> None:
    found = collateral(MADE, ["biology"])
    assert [c.name for c in found] == ["biology", "mmlu: virology", "mmlu: law", "history", "wiki"]
    assert [c.kind for c in found] == ["forget", *["retain"] * 4]
    assert {c.metric for c in found} == {"cloze_accuracy", "nll_per_token"}


def test_the_correction_leaves_what_was_to_be_forgotten_out() -> None:
    by_name = {c.name: c for c in collateral(MADE, ["biology"])}
    assert by_name["biology"].adjusted_p is None
    kept = [by_name[name] for name in ("mmlu: virology", "mmlu: law", "history", "wiki")]
    assert [c.adjusted_p for c in kept] == stats.holm([c.p_value for c in kept])
    assert [c.changed for c in kept] == [True, False, True, True]
    assert all(c.kind == "other" and c.adjusted_p is not None for c in collateral(MADE, []))


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """An adjusted p is the largest Bonferroni p of all sets of hypotheses that hold it."""
    draw = random.Random(0)
    for count in range(1, 7):
        p = [draw.choice((0.001, 0.01, 0.02, 0.2, 0.9, draw.random())) for _ in range(count)]
        for index, adjusted in enumerate(stats.holm(p)):
            sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size) if index in s]
            assert adjusted == pytest.approx(max(min(1.0, len(s) * min(p[i] for i in s)) for s in sets))


def test_two_sided_p_is_students() -> None:
    from scipy.stats import t

    assert stats.two_sided_p(-0.3, 0.1, 5) == pytest.approx(2 * t.sf(3, 4))
    assert [stats.two_sided_p(0.1, s, n) for s, n in ((0.0, 5), (0.1, 1), (0.0, 1))] == [1.0, 1.0, 1.0]


def test_the_p_of_a_few_documents_is_honest() -> None:
    """Under no change the test rejects at its level, also with four units."""
    draw = np.random.default_rng(0).normal(size=(4000, 4))
    stderr = draw.std(axis=1, ddof=1) / 2
    rejected = [stats.two_sided_p(d, s, 4) < 0.05 for d, s in zip(draw.mean(axis=1), stderr, strict=True)]
    assert 0.04 < sum(rejected) / 4000 < 0.06


def test_sample_mean_is_students() -> None:
    from scipy.stats import t

    values = [0.27, 0.29, 0.31]
    mean = stats.sample_mean(values)
    low, high = t.interval(0.95, 2, loc=0.29, scale=0.02 / 3**0.5)
    assert (mean.value, mean.stderr, mean.low, mean.high) == pytest.approx((0.29, 0.02 / 3**0.5, low, high))


def test_mean_of_means_counts_each_alike() -> None:
    assert stats.mean_of_means([0.2, 0.4], [0.03, 0.04])[:2] == pytest.approx((0.3, 0.025))


@pytest.mark.parametrize(
    ("name", "topics", "kind"),
    [
        ("bio", ["bio"], "forget"),
        ("bio_hard", ["bio"], "forget"),
        ("bio-hard", ["bio"], "forget"),
        ("biology", ["bio"], "retain"),
        ("wmdp_bio", ["bio"], "forget"),
        ("wmdp_bio", ["biology"], "forget"),
        ("wmdp-cyber", ["biology", "cyber"], "forget"),
        ("wmdp_chem", ["bio"], "retain"),
        ("mmlu", [], "other"),
    ],
)
def test_a_set_is_to_be_forgotten_when_it_is_named_like_a_topic(name: str, topics: list[str], kind: str) -> None:
    assert kind_of(name, topics) == kind
