"""The run directory, the only interface between stages: settings, results; no torch.

from misdirect import runs

runs.save_result(Path("runs/mine"), "base", result)
"""

from misdirect.runs.folder import (
    AUDIT,
    CHECKPOINT,
    CONFIG,
    CONTROL,
    DELTA,
    ENV,
    LOG,
    REPORT,
    SUMMARY,
    environment,
    is_run,
    read_config,
    read_env,
    read_log,
    require_run,
    writing,
)
from misdirect.runs.results import (
    Metric,
    Result,
    as_damaged,
    attack_folder,
    check_sound,
    differing,
    load_result,
    load_results,
    read_result,
    result_path,
    row_of,
    save_result,
    summary_rows,
    write_summary,
)

__all__ = [
    "AUDIT",
    "CHECKPOINT",
    "CONFIG",
    "CONTROL",
    "DELTA",
    "ENV",
    "LOG",
    "REPORT",
    "SUMMARY",
    "Metric",
    "Result",
    "as_damaged",
    "attack_folder",
    "check_sound",
    "differing",
    "environment",
    "is_run",
    "load_result",
    "load_results",
    "read_config",
    "read_env",
    "read_log",
    "read_result",
    "require_run",
    "result_path",
    "row_of",
    "save_result",
    "summary_rows",
    "write_summary",
    "writing",
]
