"""W&B's own process: whether it is stopped, and its end where it does not answer."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

NAME = "wandb-core"
#: Seconds that this process waits for W&B to let go of a service that was killed.
LETTING_GO = 1.0


def end_service() -> None:
    """Ends W&B's own process, which does not answer: this one would wait for it when it exits."""
    kill_services()
    # Not here: a thread that opens a run may hold what W&B locks.
    ending = threading.Thread(target=_let_go, daemon=True)
    ending.start()
    ending.join(LETTING_GO)


def kill_services() -> None:
    """Ends W&B's own process alone: who waits for it gets an error."""
    for process in services():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _let_go() -> None:
    import wandb

    before = wandb.run
    # Of a service that was killed it raises an error of the connection, or exits with its status.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
    if wandb.run is before:  # and no later one has been opened meanwhile
        wandb.run = None  # or the next run of this process would join one that nobody writes
        os.environ.pop("WANDB_SERVICE", None)


def service_is_stopped() -> bool:
    """Whether W&B's own process is stopped, and will send nothing; of one that has ended W&B itself gets an error."""
    states = services().values()
    return bool(states) and all(state in "Tt" for state in states)


def services() -> dict[int, str]:
    """The processes of W&B's that this one has started, and their states as Linux says them.

    By the system, since W&B itself may be what does not answer.
    """
    if not Path("/proc/self/stat").is_file():
        return _known_to_wandb()
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, _, rest = file.read_text(errors="replace").partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            if name == NAME and int(parent) == os.getpid():
                found[int(file.parent.name)] = state
    return found


def _known_to_wandb() -> dict[int, str]:
    """Its process, which has no public name; none where a version of W&B keeps it elsewhere."""
    found: Any = sys.modules.get("wandb.sdk.wandb_setup")
    for name in ("_singleton", "_connection", "_proc", "_process"):
        found = getattr(found, name, None)
    return {} if found is None else {found.pid: "S"}
