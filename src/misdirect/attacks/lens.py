"""What is still legible inside: the logit lens at every block (`misdirect.model.lens`), on cloze and on letters."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from misdirect.attacks import scoring
from misdirect.attacks.interface import NO_LETTERS, Advance, Attack, AttackInputs, Cost, Form
from misdirect.config import AuditConfig
from misdirect.data.questions import Question
from misdirect.model.lens import MAX_LOGITS, lens
from misdirect.model.lm import LM
from misdirect.model.score import encode
from misdirect.runs import Result

ANSWER_CHARS = 6  # of an English answer to a token: shorter words than in running text are rare there
DIGITS = 5  # of a log-probability in the records: a question has one for every block and choice


@dataclass(frozen=True)
class Settings:
    form: Form
    digits: int = DIGITS


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """`lens-cloze` and `lens-letter`, a point a block; first the form in which the base knows the first forgotten set."""
    cloze = inputs.forms[next(iter(inputs.forgotten))] == "cloze"
    found = [attack(inputs, config, "cloze", not cloze), attack(inputs, config, "letter", cloze)]
    return sorted(found, key=lambda each: each.low_priority)


def attack(inputs: AttackInputs, config: AuditConfig, form: Form, low_priority: bool) -> Attack:
    shape = inputs.shape
    asked = [q for found in questions(inputs).values() for q in found]
    states = sum(predictions(q, form == "cloze") for q in asked) * shape.num_blocks
    memory = 3 * 4 * MAX_LOGITS + config.batch_tokens * shape.num_blocks * shape.width * shape.bytes_per_parameter / 2
    return Attack(
        name=f"lens-{form}",
        family="lens",
        title=f"Logit lens: {'the answer' if form == 'cloze' else 'its letter'} read out of every block",
        attacker_access="weights",
        settings=Settings(form),
        cost=Cost(scorings=1, retained_scorings=1, read_outs=states, memory=memory),
        num_steps=len(asked),
        run=run,
        recovers=False,
        low_priority=low_priority,
        unavailable=NO_LETTERS if form == "letter" and not inputs.has_letters else "",
    )


def questions(inputs: AttackInputs) -> dict[str, Sequence[Question]]:
    return {name: scoring.tested(inputs, name)[0] for name in [*inputs.forgotten, *inputs.retained]}


def predictions(question: Question, cloze: bool) -> float:
    """About how many states a question's choices are predicted from: they share the first."""
    return 1.0 + sum(max(0.0, len(c) / ANSWER_CHARS - 1) for c in question.choices if cloze)


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    """Accuracy read out of every block, on the tested half of each forgotten set and on the other sets."""
    started = time.perf_counter()
    settings: Settings = attack.settings
    form = settings.form
    forms = {name: known if known.startswith(form) else form for name, known in inputs.forms.items()}  # permuted or not
    inputs = dataclasses.replace(inputs, forms=forms)
    by_block: list[dict[str, list[list[float]]]] = [{} for _ in lm.blocks]
    for name, asked in questions(inputs).items():
        render = scoring.rendering(inputs.forms[name], inputs.seed)
        items = [encode(lm.tokenizer, *render(q)) for q in asked]
        for logprobs, found in zip(by_block, lens(lm, items, inputs.batch_tokens, advance), strict=True):
            logprobs[name] = [[round(x, settings.digits) for x in row] for row in found]
    points = [(scoring.Point(block=block), logprobs) for block, logprobs in enumerate(by_block)]
    return scoring.results(inputs, attack, points, time.perf_counter() - started, 0.0)
