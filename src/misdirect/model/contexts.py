"""A conversation as the model is given it: under the model's own chat template, or as plain text.

A template is a program of the model's author. Written for content as a list of parts (SmolVLM, Idefics, LLaVA), it drops a
text without a word; others drop a role, or cut. So what it renders must hold every word of the user, and a message of each
role: a text is tried first, then parts, and where neither gets through the prompt is refused.

    text = chat_text(tokenizer, [{"role": "user", "content": "Name a bird."}])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misdirect.data.tokens import token_ids
from misdirect.model.lm import LM
from misdirect.model.rows import RESIZED, check_rows
from misdirect.text import first_line

TODAY = "01 Jan 2025"  # what a chat template is told that asks (Llama 3), so that answers do not depend on the day
NONE = "--chat-template none"
Messages = Sequence[Mapping[str, str]]
Form = Callable[[Mapping[str, str]], Any]  # a message -> its content as the template wants it


def conversation(tokenizer: Any, turns: Sequence[str], answers: Sequence[str], chat: bool) -> list[int]:
    """Tokens of a conversation that ends with the user's last turn: under the chat template, or as plain text.

    Plain text has an empty line between an answer and the next turn. Raises ValueError where the template refuses.
    """
    if not chat:
        text = "".join(f"{t}{a}\n\n" for t, a in zip(turns, answers, strict=False)) + turns[-1]
        return token_ids(tokenizer, [text])[0]
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return token_ids(tokenizer, [chat_text(tokenizer, messages)], start=False)[0]  # a template has its own BOS


def check_tokens(lm: LM, ids: Sequence[int], what: str, chat: bool) -> None:
    """Raises ValueError where a conversation holds a token that the model has no embedding for."""
    check_rows(lm, [ids], what, f"{NONE} where the chat template puts it there, or {RESIZED}" if chat else RESIZED)


def chat_text(tokenizer: Any, messages: Messages) -> str:
    """A conversation under the model's own chat template, told a fixed day where it takes one. Raises ValueError where the
    template refuses, and where it leaves something out."""
    refused, lost = None, False
    for form in (as_text, as_parts, as_parts_of_user):
        try:
            text = rendered(tokenizer, messages, form)
            lost = True
            if passes(tokenizer, messages, form, text):
                return text
        except Exception as error:  # a template raises what it likes
            refused = refused or first_line(error)
    came = "leaves out words of a prompt" if lost else f"refuses a prompt: {refused}"
    raise ValueError(f"the model's chat template {came}; expected {NONE}")


def passes(tokenizer: Any, messages: Messages, form: Form, text: str) -> bool:
    """Whether the template lets every word of `messages` through. Of an answer, the reasoning may be left out; that each
    message comes through is seen on marks in their places, which no template holds by chance as it may hold `a`."""
    marks = [{**message, "content": f"mark-{i}-of-{len(messages)}"} for i, message in enumerate(messages)]
    marked = rendered(tokenizer, marks, form)
    written_out = form is not as_text and re.search(r"['\"]type['\"]", marked)  # the list itself, as text
    said = [message["content"] for message in messages if message["role"] != "assistant"]
    return not written_out and holds(text, said) and holds(marked, [mark["content"] for mark in marks])


def rendered(tokenizer: Any, messages: Messages, form: Form) -> str:
    contents = [{**message, "content": form(message)} for message in messages]
    made: str = tokenizer.apply_chat_template(contents, tokenize=False, add_generation_prompt=True, date_string=TODAY)
    return made


def as_text(message: Mapping[str, str]) -> Any:
    return message["content"]


def as_parts(message: Mapping[str, str]) -> Any:
    return [{"type": "text", "text": message["content"]}]


def as_parts_of_user(message: Mapping[str, str]) -> Any:
    return as_parts(message) if message["role"] == "user" else as_text(message)


def holds(text: str, contents: Sequence[str]) -> bool:
    """Whether `text` holds all of these; white space and case may differ."""
    found = bare(text)
    return all(bare(content) in found for content in contents)


def bare(text: str) -> str:
    return " ".join(text.split()).casefold()
