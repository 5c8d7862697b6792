"""W&B's launcher of jobs, which is not imported where no job has been staged."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

STAGING = "wandb.sdk.launch.inputs.internal"


def launch_where_staged() -> None:
    """Lets W&B ask for the inputs of a job only where something has staged some, by the module that holds them.

    Else the start of every run imports all of its launcher and its public interface: a second. A version of W&B that
    does not ask in this way stays as it is.
    """
    from wandb.sdk.wandb_run import Run

    ask = getattr(Run, "_detect_and_apply_job_inputs", None)
    if ask is None or hasattr(ask, "__wrapped__"):
        return

    @wraps(ask)
    def ask_where_staged(run: Any) -> None:
        if STAGING in sys.modules:
            ask(run)

    Run._detect_and_apply_job_inputs = ask_where_staged  # type: ignore[method-assign, assignment]
