"""Relearning: does finetuning bring the knowledge back?

The clean form is `facts`: text about one half of the forgotten facts, the other half measured, so that what comes back was
still inside and was not taught (Deeb and Roger 2024, arXiv 2410.08827; the same training on the base is the control). Beside it
stand the forget corpus as it is, benign text and the retain text. Curves are over updates.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import NamedTuple

from misdirect.attacks import finetune
from misdirect.attacks.finetune import Method
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point, language, results, score_sets
from misdirect.config import AuditConfig
from misdirect.data.fact_splits import contamination_index, decontaminate, decontaminated_facts, leaks, stated
from misdirect.model.lm import LM
from misdirect.progress import note
from misdirect.runs import Result
from misdirect.storage import fingerprint

CURVE = (5, 10, 20, 50, 100, 200, 500)
LONG = 100  # updates of the last curve of a long audit
LEAST_STEPS = 10  # below, no curve says anything
LORA_LR = 10.0  # LoRA is trained at this many times the rate of full finetuning, as is usual
TITLES = {
    "facts": "other facts of the topic",
    "forget": "the forget corpus",
    "benign": "benign text",
    "retain": "the retain text",
}
KNOWLEDGE = {"facts": "answered questions", "forget": "the forget corpus", "benign": "", "retain": "the retain text"}
FLAGS = {"facts": "--questions", "forget": "--forget", "benign": "--text", "retain": "--retain"}


@dataclass(frozen=True)
class Settings:
    attack: str
    text: str
    method: Method
    lr: float
    steps: int
    batch_size: int
    max_tokens: int
    seed: int
    texts: int
    trained_on_sha256: str
    texts_that_state_a_tested_fact: int


class Text(NamedTuple):
    """What is trained on. `stating`: how many of the texts state a tested fact; `left_out`: how many more were given and did."""

    name: str
    num_texts: int
    sha256: str
    stating: int
    left_out: int = 0


def first(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """What comes before everything else: full finetuning on other facts, at the first two learning rates."""
    text = text_of(inputs, "facts")
    return [relearn(inputs, config, text, "full", lr) for lr in config.learning_rates[:2]]


def rest(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """LoRA, other texts, further rates, and the first rate for `LONG` updates where the steps are the default's."""
    rates = config.learning_rates
    facts, *others = (text_of(inputs, name) for name in TITLES)
    for text in others:
        if text.left_out and text.num_texts:
            note(f"{FLAGS[text.name]}: {text.left_out} texts state a tested fact, and relearning leaves them out; "
                 f"{text.num_texts} stay")  # fmt: skip
    plan: list[tuple[Text, Method, float]] = [(facts, "lora", LORA_LR * rates[0])]
    plan += [(text, "full", rates[0]) for text in others]
    later: list[tuple[Text, Method, float]] = [(facts, "full", lr) for lr in rates[2:]]
    later += [(text, "full", lr) for lr in rates[1:2] for text in others]
    later += [(facts, "lora", LORA_LR * lr) for lr in rates[1:2]]
    later += [(text, "lora", LORA_LR * rates[0]) for text in others]
    longer = dataclasses.replace(config, steps=LONG)
    long = [relearn(inputs, longer, facts, "full", rates[0])] if config.steps == AuditConfig.steps else []
    soon = [*(relearn(inputs, config, *one) for one in plan), *long]
    return [*soon, *(dataclasses.replace(relearn(inputs, config, *one), low_priority=True) for one in later)]


def text_of(inputs: AttackInputs, name: str) -> Text:
    texts, stating = texts_of(inputs, name), 0  # but for the forget corpus they are clean
    if name == "forget":
        measured = contamination_index(q for halves in inputs.forgotten.values() for q in halves.test)
        stating = sum(leaks(t, measured) for t in texts)
    given = {"benign": inputs.benign_texts, "retain": inputs.retain_texts}.get(name, ())
    if name == "facts":
        given = [stated(q) for halves in inputs.forgotten.values() for q in halves.train]
    return Text(name, len(texts), fingerprint(texts), stating, len(set(given) - set(texts)))


def relearn(inputs: AttackInputs, config: AuditConfig, text: Text, method: Method, lr: float) -> Attack:
    settings = Settings(
        attack="relearn",
        text=text.name,
        method=method,
        lr=lr,
        steps=config.steps,
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        seed=config.seed,
        texts=text.num_texts,
        trained_on_sha256=text.sha256,
        texts_that_state_a_tested_fact=text.stating,
    )
    how = "Finetuning" if method == "full" else "LoRA finetuning"
    return Attack(
        name=f"relearn-{text.name}-{method}-lr{short(lr)}-steps{config.steps}",
        family="relearn",
        title=f"{how} on {TITLES[text.name]}, lr {short(lr)}, {config.steps} steps",
        attacker_access="weights",
        settings=settings,
        cost=Cost(
            scorings=len(curve(config.steps)),
            retained_scorings=1,
            answers=1,
            updates=config.steps,
            update_tokens=float(config.batch_size * config.max_tokens),
            trains="weights" if method == "full" else "lora",
        ),
        num_steps=config.steps,
        run=run,
        attacker_knowledge=KNOWLEDGE[text.name],
        unavailable=unavailable(text, method, config),
    )


def short(lr: float) -> str:
    """`2e-5` and `1e-4`, where Python says 2e-05 and 0.0001."""
    digits, exponent = f"{lr:.6e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if int(exponent) < -3 else f"{lr:g}"


def unavailable(text: Text, method: Method, config: AuditConfig) -> str:
    if not text.num_texts and text.left_out:
        return f"needs {FLAGS[text.name]} text that states no tested fact: all {text.left_out} texts given do"
    if not text.num_texts:
        return f"needs {FLAGS[text.name]} text"
    if method == "lora" and not finetune.has_peft():
        return "needs misdirect[lora]"
    return "" if config.steps >= LEAST_STEPS else f"needs --steps {LEAST_STEPS} or more"


def texts_of(inputs: AttackInputs, name: str) -> list[str]:
    """Of benign and retain text what states no tested fact; the forget corpus as it is."""
    if name == "facts":
        return decontaminated_facts(inputs.forgotten.values())
    if name == "forget":
        return list(inputs.forget_texts)
    measured = [q for halves in inputs.forgotten.values() for q in halves.test]
    return decontaminate({"benign": inputs.benign_texts, "retain": inputs.retain_texts}[name], measured)


def curve(steps: int) -> list[int]:
    """The updates after which is measured: 5, 10, 20, 50, .. and the last, none closer to it than a fifth."""
    return [step for step in CURVE if step <= 0.8 * steps] + [steps]


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    """Raises ValueError where the finetuning breaks down."""
    settings: Settings = attack.settings
    steps, seed = settings.steps, settings.seed
    samples = finetune.tokenized_texts(lm, texts_of(inputs, settings.text), settings.max_tokens, seed)
    points = [(Point(step=0), inputs.plain or score_sets(lm, inputs))]
    seconds, tokens = 0.0, 0.0
    with finetune.trained(lm, settings.method) as parameters:
        started = time.perf_counter()
        for step, read in finetune.train(lm, parameters, samples, steps, settings.lr, settings.batch_size, seed):
            tokens += read
            if step in curve(steps):
                seconds += time.perf_counter() - started
                points.append((Point(step=step), score_sets(lm, inputs, general=step == steps)))
                started = time.perf_counter()
            advance(1)
        spoken = language(lm, inputs, attack)
    return [*results(inputs, attack, points, seconds, tokens), spoken]
