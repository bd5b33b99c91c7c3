"""The command line's app, and the annotations that its verbs share."""

from __future__ import annotations

from cyclopts import App, Group, Parameter

from misdirect import __version__

Flag = Parameter(negative=(), show_default=False)

SOURCES = (
    "a file or folder (jsonl, json, csv, tsv, parquet, txt, md; also .gz), hub:OWNER/DATASET[:CONFIG[:SPLIT]], or a built-in "
    "name (wmdp-bio, wmdp-bio-forget, mmlu, wikitext, demo-...); SOURCE#COLUMN names the text column"
)
app = App(
    name="misdirect",
    version=__version__,
    help="Unlearn a topic from any Hugging Face decoder on one small machine, then attack it before someone else does.\n\n"
    "New here? Type: misdirect demo",
    help_epilogue=f"MODEL is demo (SmolLM2-135M-Instruct from a package), a local folder, or a hub id. SOURCE is {SOURCES}.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` says what happens next
)
Repeated = Parameter(negative=(), consume_multiple=False, show_default=False)
Settings = Group("Settings", sort_key=2)
Measured = Group("Settings of the evaluation", sort_key=3)
