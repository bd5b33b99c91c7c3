"""misdirect: unlearn a topic from a Hugging Face decoder with RMU, and find out what is really gone.

    import misdirect as md

    run = md.unlearn("demo", forget={"biology": "demo-forget"}, retain={"wiki": "demo-retain-wikipedia"}, out="runs/a")
    rows = md.evaluate(run, questions={"biology": "demo-biology"}, texts={"wiki": "demo-text-wikipedia"})
    page = md.report(run)

| name | what it does |
|---|---|
| `plan` | what a run takes in time, memory and disk, before weights are read |
| `unlearn` | RMU on a model: texts in, a run directory out |
| `evaluate` | accuracy, likelihood and answers of a run (base and unlearned) or of one model |
| `report` | a run directory -> one self-contained HTML page |
| `demo` | all three on the embedded model |
| `UnlearnConfig`, `EvaluateConfig`, `Topic`, `Corpus` | every setting |
| `RECIPES` | published settings |

Nothing here imports torch until a function is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from misdirect.api import demo, evaluate, plan, report, unlearn
    from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
    from misdirect.recipes import RECIPES

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Corpus",
    "EvaluateConfig",
    "Topic",
    "UnlearnConfig",
    "__version__",
    "demo",
    "evaluate",
    "plan",
    "report",
    "unlearn",
]

_CONFIGS = ("Corpus", "EvaluateConfig", "Topic", "UnlearnConfig")
_HOME = {"RECIPES": "misdirect.recipes", **dict.fromkeys(_CONFIGS, "misdirect.config")}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'misdirect' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "misdirect.api")), name)
