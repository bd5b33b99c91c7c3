"""Greedy answers, base and unlearned side by side: whether what is left is still language.

`repetition` is the share of a text's word 4-grams that repeat an earlier one: near 0 for prose, near 1 for a loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from misdirect.config import EvaluateConfig, as_dict
from misdirect.model.load import LM
from misdirect.runs import Metric, Result, fingerprint

MEASUREMENT = "generation"


def config_of(config: EvaluateConfig, prompts: Sequence[str]) -> dict[str, Any]:
    keys = ("new_tokens", "dtype")
    return {k: as_dict(config)[k] for k in keys} | {"chat_template": "auto", "sha256": fingerprint(prompts)}


def chat(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as a user's turn under the model's chat template, or as it is where there is none."""
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def generation(
    lm: LM, name: str, prompts: Sequence[str], config: EvaluateConfig, advance: Callable[[int], None] | None = None
) -> Result:
    """The greedy answer to each prompt, at most `new_tokens` long."""
    started = time.perf_counter()
    records = []
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([chat(lm.tokenizer, prompt)], device=lm.device)
        with torch.inference_mode():
            out = lm.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=config.new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=lm.tokenizer.pad_token_id or lm.tokenizer.eos_token_id or 0,
            )
        tokens = out[0, ids.shape[1] :].tolist()
        text = lm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        records.append(
            {
                "id": str(index),
                "prompt": prompt,
                "text": text,
                "num_tokens": len(tokens),
                "repetition": repetition(text),
            }
        )
        if advance:
            advance(1)
    value = sum(r["repetition"] for r in records) / len(records)
    metric = Metric("repetition", value, n=len(records))
    seconds = time.perf_counter() - started
    return Result(MEASUREMENT, name, config_of(config, prompts), (metric,), tuple(records), seconds)


def repetition(text: str, n: int = 4) -> float:
    """Share of word n-grams that stand earlier in the text too; 0 for a text shorter than n + 1 words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
