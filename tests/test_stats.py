"""Intervals and paired tests against scipy, slow counts and resampling."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from misdirect import stats


@pytest.mark.parametrize("n", [1, 2, 7, 40, 1000])
def test_wilson_is_scipys(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        expected = binomtest(successes, n).proportion_ci(method="wilson")
        assert stats.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = stats.wilson(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    assert low < high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4), (0, -1)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n} is not a proportion"):
        stats.wilson(successes, n)


def test_proportion_stderr_is_that_of_the_zero_one_values() -> None:
    values = [1.0] * 7 + [0.0] * 13
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    assert stats.proportion_stderr(7, 20) == pytest.approx(math.sqrt(variance / 20))


@given(st.floats(0, 1), st.floats(0.01, 0.9))
def test_centred_maps_chance_to_0_and_all_right_to_1_in_a_straight_line(accuracy: float, chance: float) -> None:
    assert stats.centered(chance, chance) == 0.0
    assert stats.centered(1.0, chance) == 1.0
    assert stats.centered(accuracy, chance) * (1 - chance) + chance == pytest.approx(accuracy)


answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(answers)
def test_paired_is_a_slow_count_and_scipys_exact_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    result = stats.paired(first, second)
    table = {key: sum(pair == key for pair in pairs) for key in itertools.product((False, True), repeat=2)}
    assert (result.lost, result.gained, result.n) == (table[True, False], table[False, True], len(pairs))
    assert result.difference == pytest.approx((sum(second) - sum(first)) / len(pairs))
    changed = result.lost + result.gained
    expected = binomtest(min(result.lost, result.gained), changed, 0.5).pvalue if changed else 1.0
    assert result.p_value == pytest.approx(expected)
    differences = [int(b) - int(a) for a, b in pairs]
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences)) / len(differences)
    assert result.stderr == pytest.approx(spread, abs=1e-9)
    more = [*differences, 1, -1]  # the interval is the normal one with a question more lost and one more gained
    center = sum(more) / len(more)
    half = stats.Z95 * math.sqrt(sum((d - center) ** 2 for d in more)) / len(more)
    assert result.low == pytest.approx(max(-1.0, min(mean, center - half)))
    assert result.high == pytest.approx(min(1.0, max(mean, center + half)))


def test_an_interval_without_a_change_has_a_width_and_covers() -> None:
    same = stats.paired([True, False, True], [True, False, True])
    assert same.low < -0.3
    assert same.high > 0.3
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        lost, gained = draw.random(30) < 0.10, draw.random(30) < 0.04
        first, second = lost & ~gained, gained & ~lost
        found = stats.paired(first.tolist(), second.tolist())
        covered += found.low <= 0.04 * 0.9 - 0.10 * 0.96 <= found.high
    assert 0.94 <= covered / 2000 <= 0.99


@given(answers)
def test_paired_turns_round_with_its_arguments(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    forth, back = stats.paired(first, second), stats.paired(second, first)
    assert back.difference == -forth.difference
    assert (back.lost, back.gained) == (forth.gained, forth.lost)
    assert back.p_value == pytest.approx(forth.p_value)


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], []), ([True, False], [True])])
def test_paired_refuses_other_lengths_and_none(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match=f"{len(first)} and {len(second)} answers cannot be paired"):
        stats.paired(first, second)


def documents(count: int) -> tuple[list[float], list[float]]:
    """Summed NLL and token count of documents whose level and length vary."""
    draw = random.Random(5)
    tokens = [float(draw.randint(20, 200)) for _ in range(count)]
    return [n * draw.gauss(3.0, 0.5) for n in tokens], tokens


def test_ratio_of_sums_agrees_with_the_jackknife() -> None:
    sums, tokens = documents(400)
    n = len(sums)
    result = stats.ratio_of_sums(sums, tokens)
    assert result.value == pytest.approx(sum(sums) / sum(tokens))
    left_out = [(sum(sums) - a) / (sum(tokens) - b) for a, b in zip(sums, tokens, strict=True)]
    center = sum(left_out) / n
    jackknife = math.sqrt((n - 1) / n * sum((value - center) ** 2 for value in left_out))
    assert result.stderr == pytest.approx(jackknife, rel=0.02)
    half = float(t.ppf(0.975, n - 1)) * result.stderr
    assert (result.low, result.high) == pytest.approx((result.value - half, result.value + half))


def test_ratio_of_sums_agrees_with_the_bootstrap() -> None:
    sums, tokens = documents(100)
    draw = random.Random(1)
    ratios = []
    for _ in range(2000):
        rows = draw.choices(range(100), k=100)
        ratios.append(sum(sums[i] for i in rows) / sum(tokens[i] for i in rows))
    mean = sum(ratios) / len(ratios)
    spread = math.sqrt(sum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1))
    assert stats.ratio_of_sums(sums, tokens).stderr == pytest.approx(spread, rel=0.1)


def test_ratio_of_equal_denominators_is_the_mean_and_its_standard_error() -> None:
    values = [1.0, 4.0, 2.0, 7.0, 3.0]
    mean = sum(values) / 5
    stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    assert stats.ratio_of_sums(values, [1.0] * 5)[:2] == pytest.approx((mean, stderr))


def test_one_document_has_a_value_and_no_spread() -> None:
    result = stats.ratio_of_sums([6.0], [3.0])
    assert result.value == 2.0
    assert all(math.isnan(part) for part in result[1:])


@pytest.mark.parametrize(("sums", "tokens"), [([], []), ([0.0], [0.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_ratio_of_sums_refuses_no_tokens(sums: list[float], tokens: list[float]) -> None:
    with pytest.raises(ValueError, match="no tokens to average over"):
        stats.ratio_of_sums(sums, tokens)
