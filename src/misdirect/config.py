"""Every setting: one frozen dataclass per stage.

The string in a field's metadata is its `--help` text, so that the two cannot drift apart. A field that is `None` means
"take it from the recipe, or choose it from a measurement"; what was chosen is printed and stored in `config.json`.
This module imports no torch.
"""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Numerics = Literal["clean", "published"]
Schedule = Literal["constant", "linear", "cosine"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Formats = Literal["all", "cloze", "letter"]
Prompt = Literal["auto", "plain", "current", "paper"]
ChatTemplate = Literal["auto", "none"]
Method = Literal["rmu", "npo", "gradient-difference"]


Kind = Literal["forget", "retain", "other"]  # other: no topic is named, so nothing is to be forgotten


WMDP = {
    "wmdp-bio": ("bio", "biology"),
    "wmdp-cyber": ("cyber", "cybersecurity"),
    "wmdp-chem": ("chem", "chemistry"),
}


def kind_of(name: str, topics: Sequence[str]) -> Kind:
    """A set is a forget set when it is named like a topic: `biology`, `Biology-hard`, `biology.test`, `biology_2`.

    Case does not count, nor do the space, hyphen, underscore and dot between words. WMDP's sets belong to the topic that
    they are about, however it is called: `wmdp_bio` to `bio` and to `biology`.
    """
    if not topics:
        return "other"
    begun = [beginnings(n) for n in (name, *WMDP.get("-".join(words_of(name)), ()))]
    return "forget" if any("".join(words_of(topic)) in found for topic in topics for found in begun) else "retain"


def words_of(name: str) -> list[str]:
    """The words of a set's or topic's name; a name of signs alone is one."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.findall(r"[^\s._-]+", plain) or [plain]


def beginnings(name: str) -> set[str]:
    """`cyber security-hard` -> cyber, cybersecurity, cybersecurityhard."""
    return set(itertools.accumulate(words_of(name)))


def doubtful(names: Sequence[str], topics: Sequence[str]) -> list[str]:
    """What is to be said before sets are measured: names close to a topic's that do not belong to it; or that none does."""
    kept = [name for name in names if kind_of(name, topics) == "retain"]
    near = {name: found for name in kept if (found := next((t for t in topics if is_near(name, t)), None)) is not None}
    said = [
        f"the set {name!r} counts as to be kept, though its name is close to the topic {topic!r}; if it is to be forgotten, "
        f"call it {topic} or {topic}-..."
        for name, topic in near.items()
    ]
    if kept and len(kept) == len(names):
        said.append(
            f"no set is named like a topic ({', '.join(topics)}), so all count as to be kept: {', '.join(names)}; a set that "
            f"is to be forgotten is called {topics[0]} or {topics[0]}-..."
        )
    return said


def is_near(name: str, topic: str) -> bool:
    """Whether a word of one begins with the other, or they differ by a slip of typing."""
    whole, other = "".join(words_of(name)), "".join(words_of(topic))
    short = min(len(whole), len(other)) < 3
    begins = any(word.startswith(other) or (len(word) >= 3 and other.startswith(word)) for word in words_of(name))
    slip = whole[:1] == other[:1] and difflib.SequenceMatcher(None, whole, other).ratio() >= 0.75
    return not short and (begins or slip)


def option(default: Any, text: str) -> Any:
    """A dataclass field whose help text sits beside its default."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Topic:
    """One thing to forget: its name, where its text comes from, and, where they differ from the run's, its own settings."""

    name: str
    source: str
    steering: str | None = None
    retain_weight: float | None = None

    def __post_init__(self) -> None:
        if self.steering is not None:
            parse_steering(self.steering)
        if self.retain_weight is not None and not 0 < self.retain_weight < float("inf"):
            raise ValueError(f"--alpha {self.name}={self.retain_weight} is out of range; expected a number above 0")


@dataclass(frozen=True)
class Corpus:
    """One retain corpus and its share in the mixture (weights are relative: 3 and 1 mean three samples of four)."""

    name: str
    source: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"retain corpus {self.name!r} has weight {self.weight:g}; expected a number above 0")


MOST_UPDATES = 10_000_000  # the order of a run's samples is drawn before it starts


@dataclass(frozen=True)
class UnlearnConfig:
    """Settings of one RMU run. `None` = from the recipe, else from the default beside it in the help."""

    recipe: str | None = option(
        None,
        "Published settings to start from: zephyr-7b, yi-34b, mixtral-8x7b, adaptive-rmu or demo. Flags override them.",
    )
    block: int | None = option(
        None, "Zero-based decoder block l whose output is steered. [default: 7, or the middle block of a short model]"
    )
    num_blocks: int | None = option(
        None, "How many blocks are trained: l-N+1 .. l. [default: 3, or all up to l where there are fewer]"
    )
    matrix: str | None = option(
        None,
        "The trained matrix's path inside a block, such as mlp.down_proj, or a part of one: 'mlp.experts.down_proj[0]'. "
        "[default: found by structure]",
    )
    steering: str | None = option(
        None,
        "Steering coefficient c: a number, or a multiple of the measured token norm: 5x of the median, 5xmean of the mean. "
        "[default: 5x]",
    )
    alpha: float | None = option(None, "Retain weight: the factor of the retain loss. [default: 100]")
    updates: int | None = option(
        None,
        "Optimizer updates over all topics. [default: 150; under --numerics published at most the shortest corpus' batches]",
    )
    epochs: float | None = option(None, "Instead of --updates: passes over the forget text.")
    batch_size: int | None = option(None, "Forget samples per update. [default: 4]")
    retain_batch_size: int | None = option(None, "Retain samples per update. [default: as many as --batch-size]")
    max_tokens: int | None = option(None, "Longest sample in tokens; longer texts are cut into several. [default: 256]")
    lr: float | None = option(None, "Peak learning rate of AdamW. [default: measured; 5e-5 under --numerics published]")
    schedule: Schedule | None = option(None, "Learning rate over the run. [default: constant]")
    warmup: int | None = option(None, "Updates over which the learning rate rises from zero. [default: 0]")
    clip: float | None = option(None, "Largest gradient norm, all trained matrices together; 0 is off. [default: 0]")
    numerics: Numerics | None = option(
        None, "clean, or published: the arithmetic of the published code, bit for bit. [default: clean]"
    )
    seed: int = option(0, "Seed of the control vectors and of the sample order.")
    device: Device = option("auto", "Where to compute: auto takes a GPU when there is one.")
    dtype: Dtype = option("auto", "The model's dtype: auto is float32 on a CPU, bfloat16 on a GPU.")
    checkpoint_every: int = option(25, "Updates between checkpoints, from which a killed run resumes.")

    def __post_init__(self) -> None:
        at_least = {
            "block": 0,
            "num_blocks": 1,
            "updates": 1,
            "batch_size": 1,
            "retain_batch_size": 1,
            "max_tokens": 2,
            "warmup": 0,
            "clip": 0,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # NaN is no number of anything
                raise ValueError(f"{flag(name)} {value} is too small; expected at least {least}")
        if self.updates is not None and self.updates > MOST_UPDATES:
            raise ValueError(f"--updates {self.updates} is too large; expected at most {MOST_UPDATES:,}")
        for name in ("lr", "alpha", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e30:  # float32 ends soon after
                raise ValueError(f"{flag(name)} {value} is out of range; expected a number above 0 and below 1e30")
        if self.updates is not None and self.epochs is not None:
            raise ValueError("both --updates and --epochs were given; expected one of them")
        if self.checkpoint_every < 1:
            raise ValueError(f"--checkpoint-every {self.checkpoint_every} is too small; expected at least 1")
        if self.steering is not None:
            parse_steering(self.steering)
        if self.numerics == "published":
            for name in ("schedule", "warmup", "clip", "epochs", "retain_batch_size"):
                if getattr(self, name) not in (None, "constant", 0):
                    raise ValueError(
                        f"{flag(name)} has no effect under --numerics published; expected it left out, "
                        "or --numerics clean"
                    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation: how questions, text and prompts are measured."""

    limit: int | None = option(None, "Questions per set, drawn with the seed; 0 is all. [default: all]")
    formats: Formats = option(
        "all",
        "How questions are asked: cloze (the answer's text is scored), letter (A, B, .., as given and permuted), or all.",
    )
    prompt: Prompt = option(
        "auto",
        "Letter prompts: current (lm-evaluation-harness since August 2024), paper (before, and in the WMDP paper: one "
        "newline less), plain (no description). auto is current where the questions have a subject.",
    )
    shots: int = option(0, "Answered examples before each question, of its subject where it has one.")
    text_limit: int | None = option(
        200, "Documents per text set (of whole text files: samples), drawn with the seed; 0 is all."
    )
    max_tokens: int = option(
        512, "Longest text sample in tokens; longer ones are cut off, whole text files cut into samples."
    )
    new_tokens: int = option(40, "Longest answer to a prompt in tokens.")
    samples: int = option(0, "Sampled answers to each prompt, beside the greedy one.")
    temperature: float = option(0.7, "Temperature of sampled answers.")
    top_p: float = option(1.0, "Sampled answers draw from the likeliest tokens that hold this probability together.")
    chat_template: ChatTemplate = option(
        "auto", "Prompts as a user's turn where the model has a chat template, or as they are."
    )
    judge: str | None = option(
        None, "Address of an OpenAI-compatible endpoint that scores answers, such as http://localhost:8000/v1."
    )
    judge_model: str | None = option(None, "Name of the judge's model at that address.")
    batch_tokens: int = option(4096, "Tokens per forward pass: more is faster on a GPU, less needs less memory.")
    seed: int = option(0, "Seed of every draw: questions, documents, permuted choices, sampled answers.")
    device: Device = option("auto", "Where to compute: auto takes a GPU when there is one.")
    dtype: Dtype = option("auto", "The model's dtype: auto is float32 on a CPU, bfloat16 on a GPU.")

    def __post_init__(self) -> None:
        for name in ("limit", "text_limit"):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, None)
        at_least = {
            "limit": 1,
            "text_limit": 1,
            "shots": 0,
            "max_tokens": 2,
            "new_tokens": 1,
            "samples": 0,
            "batch_tokens": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # NaN is no number of anything
                raise ValueError(f"{flag(name)} {value} is too small; expected at least {least}")
        if not 0 < self.temperature < 1e3:
            raise ValueError(f"--temperature {self.temperature} is out of range; expected a number above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p} is out of range; expected a number above 0 and at most 1")
        if (self.judge is None) != (self.judge_model is None):
            given, lacking = ("--judge", "--judge-model") if self.judge else ("--judge-model", "--judge")
            raise ValueError(f"{given} was given without {lacking}; expected both")


@dataclass(frozen=True)
class AuditConfig:
    """Settings of an audit: how long it may take, on how many questions, and how hard each attack tries."""

    minutes: float = option(45.0, "Time to spend, in minutes; what does not fit is said before it starts.")
    limit: int | None = option(400, "Questions per forgotten set, half of them for the attacker; 0 is all.")
    general: int = option(
        100, "Questions per other set that are asked again after each attack: the general ability left."
    )
    formats: Formats = option(
        "all",
        "How base and unlearned model are asked before any attack; the audit then uses the "
        "format in which the base knows the answers.",
    )
    steps: int = option(60, "Relearning: updates of the longest curve.")
    lr: str = option("2e-5,1e-4", "Relearning: learning rates, with commas between.")
    batch_size: int = option(4, "Relearning: samples an update.")
    max_tokens: int = option(128, "Relearning: longest sample in tokens.")
    soft_tokens: int = option(10, "Soft prompt: length in tokens.")
    soft_steps: int = option(60, "Soft prompt and perturbation: updates.")
    gcg_steps: int = option(50, "GCG: steps of the search.")
    gcg_candidates: int = option(64, "GCG: candidates tried a step.")
    suffix_tokens: int = option(12, "GCG: length of the adversarial text in tokens.")
    batch_tokens: int = option(4096, "Tokens per forward pass: more is faster on a GPU, less needs less memory.")
    seed: int = option(0, "Seed of every draw: the split by fact, sample orders, probes, noise.")
    device: Device = option("auto", "Where to compute: auto takes a GPU when there is one.")
    dtype: Dtype = option("auto", "The model's dtype: auto is float32 on a CPU, bfloat16 on a GPU.")

    def __post_init__(self) -> None:
        if self.limit == 0:
            object.__setattr__(self, "limit", None)
        counts = ("general", "steps", "batch_size", "soft_tokens", "soft_steps", "gcg_steps", "gcg_candidates",
                  "suffix_tokens", "batch_tokens")  # fmt: skip
        for name, least in [("limit", 2), ("max_tokens", 2), *((name, 1) for name in counts)]:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{flag(name)} {value} is too small; expected at least {least}")
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes {self.minutes} is out of range; expected a number above 0")
        self.learning_rates  # noqa: B018 - raises

    @property
    def learning_rates(self) -> list[float]:
        """Raises ValueError for what is no list of numbers."""
        try:
            rates = [float(part) for part in self.lr.split(",")]
        except ValueError:
            rates = []
        if not rates or len(set(rates)) < len(rates) or not all(0 < rate < 1 for rate in rates):
            raise ValueError(f"--lr {self.lr!r} is no list of learning rates; expected such as 2e-5,1e-4")
        return rates


# Fields that change how fast a number is computed but not the number: a result stays valid when they differ.
SPEED_ONLY = frozenset({"batch_tokens", "device", "checkpoint_every"})


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def parse_steering(text: str) -> tuple[float, str]:
    """(strength, what it multiplies): `"6.5"` -> (6.5, ""), `"5x"` -> (5.0, "median"), `"5xmean"` -> (5.0, "mean").

    A multiple is one of the measured token norm, its median or its mean. Raises ValueError for anything else.
    """
    number, times, unit = text.lower().partition("x")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or unit not in ("", "median", "mean"):
        raise ValueError(
            f"steering {text!r} is not a strength; expected a number such as 6.5, or a multiple of the measured token norm "
            "such as 5x (of the median) or 5xmean"
        )
    return value, (unit or "median") if times else ""
