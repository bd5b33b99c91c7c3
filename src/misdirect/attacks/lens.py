"""What is still legible inside: the logit lens at every block (`misdirect.model.lens`), on cloze and on letters."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from misdirect.attacks import scoring
from misdirect.attacks.interface import NO_LETTERS, Advance, Attack, Case, Cost, Form
from misdirect.config import AuditConfig
from misdirect.data.questions import Question
from misdirect.model.lens import MAX_LOGITS, lens
from misdirect.model.load import LM
from misdirect.model.score import encode
from misdirect.runs import Result

ANSWER_CHARS = 6  # of an English answer to a token: shorter words than in running text are rare there
DIGITS = 5  # of a log-probability in the records: a question has one for every block and choice


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """`lens-cloze` and `lens-letter`, a point a block; first the form in which the base knows the first forgotten set."""
    cloze = case.forms[next(iter(case.forgotten))] == "cloze"
    found = [attack(case, config, "cloze", late=not cloze), attack(case, config, "letter", late=cloze)]
    return sorted(found, key=lambda each: each.late)


def attack(case: Case, config: AuditConfig, form: Form, late: bool) -> Attack:
    shape = case.shape
    asked = [q for found in questions(case).values() for q in found]
    states = sum(predictions(q, form == "cloze") for q in asked) * shape.num_blocks
    # reading a state out costs the unembedding's share of a token's pass, and a pass of one token for each part
    share = shape.vocabulary * shape.width / shape.num_parameters
    memory = 3 * 4 * MAX_LOGITS + config.batch_tokens * shape.num_blocks * shape.width * shape.bytes_per_parameter / 2
    return Attack(
        name=f"lens-{form}",
        family="lens",
        title=f"Logit lens: {'the answer' if form == 'cloze' else 'its letter'} read out of every block",
        access="weights",
        settings={"form": form, "digits": DIGITS},
        cost=Cost(forward_tokens=scoring.sitting_tokens(case) + states * share, memory=memory),
        num_steps=len(asked),
        run=run,
        recovers=False,
        late=late,
        missing=NO_LETTERS if form == "letter" and not case.has_letters else "",
    )


def questions(case: Case) -> dict[str, Sequence[Question]]:
    return {name: scoring.tested(case, name)[0] for name in [*case.forgotten, *case.retained]}


def predictions(question: Question, cloze: bool) -> float:
    """About how many states a question's choices are predicted from: they share the first."""
    return 1.0 + sum(max(0.0, len(c) / ANSWER_CHARS - 1) for c in question.choices if cloze)


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Accuracy read out of every block, on the tested half of each forgotten set and on the other sets."""
    started = time.perf_counter()
    form = attack.settings["form"]
    kept = {
        name: known if known.startswith(form) else form for name, known in case.forms.items()
    }  # permuted letters are letters
    case = dataclasses.replace(case, forms=kept)
    sats: list[dict[str, list[list[float]]]] = [{} for _ in lm.blocks]
    for name, asked in questions(case).items():
        render = scoring.rendering(case.forms[name], case.seed)
        items = [encode(lm.tokenizer, *render(q)) for q in asked]
        for sat, found in zip(sats, lens(lm, items, case.batch_tokens, advance), strict=True):
            sat[name] = [[round(x, DIGITS) for x in row] for row in found]
    points = [(scoring.Point(block=block), sat) for block, sat in enumerate(sats)]
    return scoring.results(case, attack, points, time.perf_counter() - started, 0.0)
