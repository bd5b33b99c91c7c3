"""Talk to a run: base and unlearned model answer the same prompt, side by side in the terminal.

The base is loaded once and the delta swapped in for the second answer. Each model has its own history: it sees its own
earlier answers. What a model or a pasted prompt holds beyond text (escape sequences, control characters, direction
overrides) is shown as an escape and never obeyed. An answer that is no language any more is marked, by the same rule as in
an evaluation (`misdirect.evaluation.degeneration`).

    chat("runs/demo")                              # prompts from the keyboard
    echo "What is a cell?" | misdirect chat RUN    # one prompt a line
"""

from __future__ import annotations

from pathlib import Path

from misdirect.config import ChatTemplate, Device, Dtype


def chat(
    run: str | Path,
    *,
    model: str | None = None,
    new_tokens: int = 120,
    temperature: float = 0.0,
    top_p: float = 1.0,
    chat_template: ChatTemplate = "auto",
    seed: int = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> None:
    """Reads prompts until `/quit`, the end of the input or Ctrl-C, and prints both models' answers to each.

    `model`: where the run's base lies now, if it has moved; `temperature` 0 answers greedily. Raises ValueError for what
    is no finished run and for a base with other weights than the run was made from.
    """
    raise NotImplementedError
