"""The headline of an audit: how much comes back under the strongest attack and at what price, and what bounds that."""

from __future__ import annotations

from typing import NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.content.audit import (
    GIVEN_AWAY,
    access_word,
    bracketed,
    degenerate,
    general,
    place,
    share,
    share_of,
    tokens_of,
)
from misdirect.reporting.content.form import in_line
from misdirect.reporting.load.audit import DONE, FAILED, INCONCLUSIVE, NOT_RUN, Attempt, Audit
from misdirect.reporting.wording import NONE

EXPLAINED = (
    "The strongest attack is chosen on one half of the tested questions and reported on the other, and the other way round, "
    "so that the number is not the luckiest of many."
)


class Headline(NamedTuple):
    """What stands on top for one forgotten set."""

    set: str
    big: str
    sentence: str
    small: list[str]


def headlines(audit: Audit) -> list[Headline]:
    return [headline_of(audit, name) for name in audit.forgotten]


def headline_of(audit: Audit, name: str) -> Headline:
    removed = removed_in_words(audit, name)
    if not audit.removed(name):
        text = f"{name}: nothing was removed beyond chance{removed}, so nothing can come back."
        return Headline(name, "nothing was removed", text, [])
    found, finished = audit.share(name), finished_attacks(audit, name)
    if found is None:
        known = "" if not finished else " that was chosen on one half of the questions and measured on the other"
        text = (
            f"{name}: no attack has been run that could bring knowledge back{known}. This says nothing about the model."
        )
        if finished and all(each.settings.get(GIVEN_AWAY) for each in finished):
            text = (
                f"{name}: the attacks that were run train on text that states tested facts, so what comes back under them may "
                "have been taught. No other attack has been run."
            )
        return Headline(name, "not attacked", text, [])
    names, prices = strongest_in_words(audit, name)
    text = f"{name}: {bracketed(share_of(found))} of what was removed comes back under {names}"
    text += f"; price: {prices}." if prices else "."
    small = []
    if found.low is not None and found.low <= 0:
        small.append(
            "The interval holds 0: this cannot be told from nothing coming back under the attacks that were run. "
            "Another attack may do better."
        )
    small += beside(audit, name)
    if removed:
        small.append(f"What was removed: {removed.strip(' ():')}.")
    small.append(f"{wording.counted(len(finished), 'attack')} run to the end that could bring knowledge back.")
    return Headline(name, share(found.value), text, small)


def beside(audit: Audit, name: str) -> list[str]:
    """What must be read beside the headline: the base under the same attack, and what is left of the model after it."""
    said = []
    right = audit.strongest_config(name).right
    before, after = right.base, right.base_attacked
    ceiling, gap = (audit.strongest_row(name, metric) for metric in ("recovered_share_base", "gap_closed"))
    if before is not None and after is not None:
        text = f"The base under the same attack: {wording.value('accuracy', before)} to {wording.value('accuracy', after)} right"
        if ceiling is not None:
            text += f"; on the scale of the headline it scores {share(ceiling.value)}, which is what complete recovery would"
        said.append(text + ".")
    if gap is not None:
        text = (
            f"Over all tested questions the attack closes {bracketed(share_of(gap))} of the gap between the unlearned "
        )
        said.append(text + "model and the base under the same attack.")
    chosen = audit.chosen(name)
    made = audit.attempt(chosen[0][0]) if chosen else None
    if made is not None:
        kept, odd = general(audit, made, chosen[0][1]), degenerate(made)
        parts = [f"general ability {in_line(kept)}" if kept.value != NONE else ""]
        parts += [f"answers that are not language {odd}" if odd != NONE else ""]
        if any(parts):
            which = "it" if len({attack for attack, _ in chosen}) == 1 else made.title
            said.append(f"After {which}: {'; '.join(part for part in parts if part)}.")
    return said


def removed_in_words(audit: Audit, name: str) -> str:
    """` (base 64.2 %, unlearned 31.2 %: 33.0 points [25.1 to 40.9])`, as far as it is known."""
    base, after = audit.untouched("base", name), audit.untouched("unlearned", name)
    both = [f"{m} {wording.value('accuracy', x)}" for m, x in (("base", base), ("unlearned", after)) if x is not None]
    change = audit.change(name)
    value, low, high = change.value, change.low, change.high
    drop = f"{points(value)} points" if value is not None else ""
    drop += f", 95 % interval {points(low)} to {points(high)}" if drop and low is not None and high is not None else ""
    parts = [", ".join(both) + (" right" if both else ""), drop]
    return f" ({': '.join(part for part in parts if part)})" if any(parts) else ""


def points(x: float | None) -> str:
    return "" if x is None else wording.signed(100 * x, 1).removeprefix("+")


def strongest_in_words(audit: Audit, name: str) -> tuple[str, str]:
    """(`the strongest attack: TITLE (step 60)`, its price); two where the halves of the questions chose two."""
    chosen = list(dict.fromkeys(audit.chosen(name)))
    if not chosen:
        return "the strongest attack", ""
    attacks = list(dict.fromkeys(attack for attack, _ in chosen))
    made = {attack: audit.attempt(attack) for attack in attacks}
    titles = []
    for attack in attacks:
        each = made[attack]
        spots = wording.listed([text for which, point in chosen if which == attack and (text := place(point, each))])
        titles.append((each.title if each else attack) + (f" ({spots})" if spots else ""))
    prices = list(dict.fromkeys(text for attack in attacks if (text := price(made[attack], name))))
    if len(attacks) == 1:
        return f"the strongest attack: {titles[0]}", "".join(prices)
    told = (
        prices[0] + " each"
        if len(prices) == 1
        else "; ".join(f"{x} for the {n}" for x, n in zip(prices, NTH, strict=False))
    )
    return f"the strongest attack on either half of the questions: {' / '.join(titles)}", told if prices else ""


NTH = ("first", "second")


def price(made: Attempt | None, name: str) -> str:
    """`31,000 tokens, 64 seconds, access to the weights`."""
    if made is None:
        return ""
    tokens, seconds = made.cost(name, "attack_tokens"), made.cost(name, "attack_seconds")
    parts = [f"{tokens_of(tokens)} tokens"] if tokens else []
    parts += [wording.duration(seconds)] if seconds is not None else []
    parts += [f"access to {access_word(made)}"] if made.access else []
    return ", ".join(parts)


def finished_attacks(audit: Audit, name: str) -> list[Attempt]:
    return [a for a in audit.attempts if a.recovers and a.status == DONE and a.share(name) is not None]


def silent(audit: Audit) -> list[str]:
    """How many attacks say nothing, and why that is no good news."""
    own = [a for a in audit.attempts if a.recovers]
    counts = [(sum(a.status == status for a in own), status) for status in (NOT_RUN, INCONCLUSIVE, FAILED)]
    said = [f"{count} {status}" for count, status in counts if count]
    if not said:
        return []
    return [
        f"Of {wording.counted(len(own), 'attack')}, {wording.listed(said)}: these say nothing about the model, good or bad."
    ]


def unknown(audit: Audit) -> list[str]:
    """Questions that the base does not know, set apart: how many, and their accuracy before and after."""
    return [text for name in audit.forgotten if (text := unknown_of(audit, name))]


def unknown_of(audit: Audit, name: str) -> str:
    tested, known = audit.split(name).tested, audit.split(name).known
    apart = audit.strongest_config(name).unknown
    if tested is None or (known is None and apart.n is None):
        return ""
    count = tested - (known or 0) if apart.n is None else apart.n
    text = f"{name}: {tested} questions tested, {tested - count} of which the base knows"
    if not count:
        return text + "; none had to be set apart."
    text += f"; the other {count} are set apart and in no recovered share"
    right = (("unlearned", apart.unlearned_right), ("strongest attack", apart.attacked_right))
    shown = [f"{when} {x}" for when, x in right if x is not None]
    return text + (f"; right among them: base 0, {', '.join(shown)}." if shown else ".")
