"""misdirect: unlearn a topic from a Hugging Face decoder with RMU, and find out what is really gone.

    import misdirect as md

    run = md.unlearn("demo", forget={"biology": "demo-forget"}, retain={"wiki": "demo-retain-wikipedia"}, out="runs/a")
    rows = md.evaluate(run, questions={"biology": "demo-biology"}, texts={"wiki": "demo-text-wikipedia"})
    page = md.report(run)
    record = md.audit(run, questions={"biology": "demo-biology"})

| name | what it does |
|---|---|
| `plan` | what a run takes in time, memory and disk, before weights are read |
| `unlearn` | RMU on a model: texts in, a run directory out |
| `evaluate` | accuracy, likelihood and answers of a run (base and unlearned) or of one model |
| `audit` | attacks a run, or any two checkpoints: what of that which was removed comes back |
| `chat` | base and unlearned model of a run, side by side in the terminal |
| `export` | a run -> a checkpoint that every other tool reads, or a LoRA adapter |
| `report` | a run directory -> one self-contained HTML page |
| `demo` | unlearn, evaluate and report on the embedded model |
| `LM.of(model, tokenizer)` | a model in memory, for every verb that takes one |
| `UnlearnConfig`, `EvaluateConfig`, `AuditConfig`, `ExportConfig`, `Topic`, `Corpus` | every setting |
| `RECIPES` | published settings |

Nothing here imports torch until a function is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from misdirect.api import audit, demo, evaluate, export, plan, report, unlearn
    from misdirect.cli.chat import chat
    from misdirect.config import AuditConfig, Corpus, EvaluateConfig, Topic, UnlearnConfig
    from misdirect.exporting.settings import ExportConfig
    from misdirect.model.lm import LM as LM
    from misdirect.recipes import RECIPES

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "AuditConfig",
    "Corpus",
    "EvaluateConfig",
    "ExportConfig",
    "Topic",
    "UnlearnConfig",
    "__version__",
    "audit",
    "chat",
    "demo",
    "evaluate",
    "export",
    "plan",
    "report",
    "unlearn",
]

_CONFIGS = ("AuditConfig", "Corpus", "EvaluateConfig", "Topic", "UnlearnConfig")
_HOME = {
    "LM": "misdirect.model.lm",
    "chat": "misdirect.cli.chat",
    "ExportConfig": "misdirect.exporting.settings",
    "RECIPES": "misdirect.recipes",
    **dict.fromkeys(_CONFIGS, "misdirect.config"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__ and name != "LM":  # which imports torch, and so is not among the names that a star takes
        raise AttributeError(f"module 'misdirect' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "misdirect.api")), name)
