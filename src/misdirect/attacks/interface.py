"""What every attack of one audit shares (`AttackInputs`), and what an attack is (`Attack`).

An attack module offers `attacks(inputs, config) -> list[Attack]`, each with a `run(lm, inputs, attack, advance)` that gives
the `Result`s of one model, base or unlearned, and leaves the model's bits as they were. It never learns which of the two it
attacks. `misdirect.attacks.scoring` does the asking and makes the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from misdirect.data.fact_splits import Halves, stated
from misdirect.data.questions import LETTERS, Question
from misdirect.model.lm import LM
from misdirect.runs import Result

Form = Literal["cloze", "letter", "letter_permuted"]
# What the attacker must have in hand: say what he likes; compute gradients; change the weights.
Access = Literal["prompt", "gradients", "weights"]
Advance = Callable[[int], None]
Trains = Literal["weights", "lora", "inputs"]  # what an update changes; "inputs": vectors or tokens, no weight
NO_LETTERS = f"needs questions of at most {len(LETTERS)} choices"


class Shape(NamedTuple):
    """Sizes of the attacked model, for estimates."""

    num_parameters: int
    num_blocks: int
    width: int
    vocabulary: int
    bytes_per_parameter: int


class Means(NamedTuple):
    """Mean residual states after every block, over the tokens of each kind of text (first tokens and padding left out)."""

    forget: Float[Tensor, "L D"]
    retain: Float[Tensor, "L D"]


@dataclass(frozen=True)
class AttackInputs:
    """What one audit gives to its attacks. Sets are by the names given on the command line.

    `identity`: hashes and seeds of all of it; part of every result's config, so that results of other material are not
    mixed. `means` and `medians` (of the token norm after every block, on forget text, of the base) are there for attacks
    with `needs_mean_states`. `plain`: what the model at hand answers without any attack, where that is known already.
    `progress_file`: where a long attack on it may keep its progress (`misdirect.attacks.resume`).
    """

    forgotten: Mapping[str, Halves]
    retained: Mapping[str, Sequence[Question]]
    forms: Mapping[str, Form]
    forget_texts: Sequence[str]
    retain_texts: Sequence[str]
    benign_texts: Sequence[str]
    control_vectors: Mapping[str, Float[Tensor, " D"]]
    block: int | None  # where the run steered, if it is known
    shape: Shape
    seed: int = 0
    batch_tokens: int = 4096
    identity: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[str, Means] = field(default_factory=dict)  # "base", "unlearned"
    medians: Float[Tensor, " L"] | None = None
    plain: Mapping[str, list[list[float]]] | None = None
    progress_file: Path | None = None

    @property
    def num_tested(self) -> int:
        return sum(len(halves.test) for halves in self.forgotten.values())

    @property
    def topic_texts(self) -> Sequence[str]:
        """The forget texts, or the attacker's half of the facts where there are none."""
        return self.forget_texts or [stated(q) for halves in self.forgotten.values() for q in halves.train]

    @property
    def has_letters(self) -> bool:
        """Whether every question has a letter for each of its choices."""
        known = (q for halves in self.forgotten.values() for q in (*halves.train, *halves.test))
        kept = (q for questions in self.retained.values() for q in questions)
        return all(len(q.choices) <= len(LETTERS) for q in (*known, *kept))


class Cost(NamedTuple):
    """What an attack does to one model, in counts: `misdirect.auditing.budget` makes seconds and bytes of them."""

    scorings: int = 0  # of the tested questions
    retained_scorings: int = 0  # of the other sets
    answers: int = 0  # `language` results
    tokens: float = 0.0  # read beside those
    read_outs: float = 0.0  # states through the LM head alone
    updates: int = 0
    update_tokens: float = 0.0  # of one update, on the mean sample
    trains: Trains | None = None
    rewrites: int = 0  # of every matrix
    copies: float = 0.0  # of the weights that stand beside the model
    flops: float = 0.0  # in float64, outside the model
    memory: float = 0.0  # bytes, beside what follows from the above


@dataclass(frozen=True)
class Attack:
    """One attack with its settings. `name` is its folder and its `attack` in summary.json: letters, digits, - and _."""

    name: str
    family: str  # relearn, direction, lens, probe, soft-prompt, gcg, prompt, quantise, prune, noise, perturbation, ...
    title: str  # a line for tables: "Finetuning on other facts, lr 2e-5"
    attacker_access: Access
    settings: (
        Any  # a frozen dataclass of plain data that determines its numbers; its fields are the stored names, in order
    )
    cost: Cost
    num_steps: int  # what `run` advances by in all
    run: Callable[[LM, AttackInputs, Attack, Advance], list[Result]]
    recovers: bool = True  # False: it says what is inside, and is not counted as bringing knowledge back
    needs_mean_states: bool = False
    attacker_knowledge: str = ""  # needed beside the access: "the control vectors", "the base model", ...
    low_priority: bool = False  # dear, beyond small models, or nearly another: an audit's time goes to the rest before
    base_independent: bool = True  # what it does to the base depends on nothing of the unlearned model
    unavailable: str = ""  # why it cannot be run here, in words ("needs --forget text"); empty where it can
