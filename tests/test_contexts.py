"""Chat templates: whatever they are, the user's words reach the model, or the prompt is refused. The oracle is the text
that a person reads out of the template."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import tiny
from attack_cases import tiny_inputs
from misdirect import storage
from misdirect.attacks import prompts as attacks
from misdirect.cli.main import main
from misdirect.config import EvaluateConfig
from misdirect.data.prompts import Prompt
from misdirect.data.tokens import token_ids
from misdirect.evaluation.generation import generation
from misdirect.model.contexts import chat_text, conversation

EACH = "{% for m in messages %}<{{ m.role }}>"
NEXT = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEXT = EACH + "{{ m.content }}" + NEXT
PARTS = (
    EACH
    + "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}<image>{% endif %}{% endfor %}"
    + NEXT
)
EITHER = (
    EACH
    + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    + NEXT
)
PARTS_OF_USER = (
    EACH
    + "{% if m.role == 'user' %}{% for p in m.content %}{{ p['text'] }}{% endfor %}"
    + "{% else %}{{ m.content.strip() }}{% endif %}"
    + NEXT
)
SELECTED = EACH + "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}" + NEXT
STRICT = EACH + "{% for p in m.content %}{{ '' + p['text'] }}{% endfor %}" + NEXT  # raises on a text
WORDS = "Name a <b>bird</b>,\n  and a FISH. "
TURNS = [("user", WORDS), ("assistant", "An owl."), ("user", "a")]


def talking(template: Any, form: str = "$A") -> Any:
    tokenizer = copy.deepcopy(tiny.tiny_tokenizer())
    tokenizer.chat_template = template
    tokenizer.bos_token = "<pad>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(form, special_tokens=[("<pad>", 0), ("<eos>", 1)])
    return tokenizer


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("template", [TEXT, PARTS, EITHER, PARTS_OF_USER, SELECTED, STRICT])
def test_text_or_parts_the_words_come_through(template: str) -> None:
    whole = "".join(f"<{role}>{content}" for role, content in TURNS) + "<assistant>"
    assert chat_text(talking(template), messages(TURNS)) == whole
    assert chat_text(talking({"default": template, "tool_use": "nothing"}), messages(TURNS)) == whole


KEPT = {  # (template, what a person reads)
    "strips": (TEXT.replace("m.content", "m.content | trim"), f"<user>{WORDS.strip()}<assistant>"),
    "one line": (TEXT.replace("m.content", "m.content.split() | join(' ')"), "<user>Name a <b>bird</b>, and a FISH.<assistant>"),
    "small letters": (TEXT.replace("m.content", "m.content | lower"), f"<user>{WORDS.lower()}<assistant>"),
    "no tools": ("{% if tools %}{{ tools | length }}{% endif %}" + TEXT, f"<user>{WORDS}<assistant>"),
    "cut further on": (TEXT.replace("m.content", "m.content[:200]"), f"<user>{WORDS}<assistant>"),
    "the day as a variable": ("{{ date_string }}" + TEXT, f"01 Jan 2025<user>{WORDS}<assistant>"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_a_template_may_do_to_the_words(name: str) -> None:
    template, expected = KEPT[name]
    assert chat_text(talking(template), messages(TURNS[:1])) == expected


def test_reasoning_may_be_left_out_of_an_answer() -> None:
    template = TEXT.replace("m.content", "m.content.split('</think>')[-1]")
    told = messages([TURNS[0], ("assistant", "<think>birds</think>An owl."), TURNS[2]])
    assert chat_text(talking(template), told) == f"<user>{WORDS}<assistant>An owl.<user>a<assistant>"


LOST = {
    "nothing of it": "<user>{% if add_generation_prompt %}<assistant>{% endif %}",
    "the first message alone": TEXT.replace("in messages", "in messages[:1]"),
    "the last message alone": TEXT.replace("in messages", "in messages[-1:]"),
    "no answers": EACH + "{% if m.role == 'user' %}{{ m.content }}{% endif %}" + NEXT,
    "cut": TEXT.replace("m.content", "m.content[:12]"),
    "pictures alone": PARTS.replace("== 'text'", "== 'image'"),
    "another key": PARTS.replace("p.text", "p.content"),
    "the list as text": EACH + "{% if m.content is not string %}{{ m.content | trim }}{% endif %}" + NEXT,
    "the list as JSON": EACH + "{% if m.content is not string %}{{ m.content | tojson }}{% endif %}" + NEXT,
}


@pytest.mark.parametrize("name", LOST)
def test_a_template_that_loses_words_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="chat template leaves out words of a prompt; expected --chat-template none"):
        chat_text(talking(LOST[name]), messages(TURNS))


def test_a_dropped_system_message_is_noticed_and_a_moved_one_is_not() -> None:
    turns = [("system", "Be brief."), ("user", "a")]
    dropped = TEXT.replace("in messages", "in messages if m.role != 'system'")
    with pytest.raises(ValueError, match="leaves out words"):
        chat_text(talking(dropped), messages(turns))
    moved = TEXT.replace("in messages", "in messages | reverse")
    assert chat_text(talking(moved), messages(turns)) == "<user>a<system>Be brief.<assistant>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('after four turns') }}", "after four turns"),
        ("{{ documents | length }}" + TEXT, "no len"),
        ({"tool_use": TEXT, "rag": TEXT}, "multiple chat templates"),
        ("{% for %}", "Expected an expression"),
    ],
)
def test_a_template_that_refuses_is_one_line(template: Any, said: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^the model's chat template refuses a prompt: .*{said}.*--chat-template none$"
    ):
        chat_text(talking(template), messages(TURNS))


@pytest.mark.parametrize("form", ["$A", "<pad> $A", "<pad> $A <eos>"])
@pytest.mark.parametrize("template", [TEXT, "{{ bos_token }}" + TEXT])
def test_the_template_s_own_start_stands_there_once(form: str, template: str) -> None:
    tokenizer, starts = talking(template, form), template != TEXT
    body = token_ids(tokenizer, [f"<user>{WORDS}<assistant>"], start=False)[0]
    assert conversation(tokenizer, [WORDS], [], chat=True) == [0] * starts + body
    lm, inputs = tiny_inputs(count=4)
    lm = dataclasses.replace(lm, tokenizer=tokenizer)
    question = inputs.forgotten["biology"].test[0]
    context = attacks.formats(lm, inputs)["chat"]("biology", lambda q: ("", []))(question)[0]
    ids = token_ids(tokenizer, [context])[0]
    asked = token_ids(tokenizer, [f"<user>{question.question}<assistant>"], start=False)[0]
    assert ids == [0] * (starts or "<pad>" in form) + asked  # as the attack is scored


def test_prompts_reach_a_model_whose_template_wants_parts(tmp_path: Path) -> None:
    lm = tiny_inputs(count=4)[0]
    lm = dataclasses.replace(lm, tokenizer=talking(PARTS))
    same = dataclasses.replace(lm, tokenizer=talking(TEXT))
    asked = [Prompt("a", ("The river", "the house")), Prompt("b", ("old water",))]
    config = EvaluateConfig(new_tokens=6)
    records = generation(lm, "x", asked, config).records
    assert records == generation(same, "x", asked, config).records
    assert records[0]["text"] != records[1]["text"]


def test_the_command_line_says_what_a_template_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.fill_shelf(tmp_path)
    talking(LOST["cut"]).save_pretrained(tmp_path / "llama")
    (tmp_path / "talk.jsonl").write_text(json.dumps({"prompt": "Where does the river go to?"}) + "\n")
    asked = ["evaluate", str(tmp_path / "llama"), "--prompts", f"p={tmp_path / 'talk.jsonl'}", "--new-tokens", "3"]
    asked += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(asked) == 2
    assert "leaves out words of a prompt; expected --chat-template none" in capsys.readouterr().err
    assert main([*asked, "--chat-template", "none"]) == 0
    (path,) = (tmp_path / "out" / "results" / "base").glob("generation*.json")
    assert storage.read_json(path)["records"][0]["chat"] is False
