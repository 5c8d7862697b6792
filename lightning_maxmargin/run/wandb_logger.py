"""W&B that never costs a training run: offline where it cannot be reached, given up where it does not answer."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.callbacks.axes import define_axes
from lightning_maxmargin.run.patience import PATIENCE, Patience

PROJECT = "lightning-maxmargin"
#: Seconds that W&B itself may take to reach its server.
OPENING = 8.0
#: Seconds that a run which is over waits for W&B to send what is left, while its service works.
SENDING = 600.0
#: Silent: the table at the end of a run says what there is to say; no copies of code or terminal output. Each counts
#: where W&B's variable of its name is not set.
QUIET: dict[str, Any] = {
    "silent": True, "console": "off", "disable_git": True, "save_code": False, "init_timeout": OPENING,
}  # fmt: skip


class MarginWandbLogger(WandbLogger):
    """W&B that never costs a training run, with an axis for every metric.

    Without a key, a network, a disk or a server it warns once and goes on offline, or not at all; no step waits for it,
    and where its service does not answer for eight seconds it is given up. A run that is over waits for what is left to
    be sent to a server, at most ten minutes or until Ctrl-C. The run id is kept in ``wandb_id.txt`` of the run
    directory, so that a run that goes on there goes on with its W&B run. Each key of
    :mod:`~lightning_maxmargin.keys` is drawn against its own axis, all else against ``trainer/global_step``.

    Args:
        run_dir: the run directory; the W&B run lies there, or in ``WANDB_DIR``.
        name: of the run, where ``WANDB_NAME`` says none.
        project: None is ``WANDB_PROJECT``, else ``lightning-maxmargin``.
        offline: write to disk alone.
        log_model: whether the last checkpoint becomes an artifact.
        words: what else ``wandb.init`` takes: entity, group, job_type, tags, notes, id.
    """

    #: A monitor defines them for loggers that do not do so themselves.
    has_axes = True

    def __init__(
        self, run_dir: Path, name: str, project: str | None = None, offline: bool = True, log_model: bool = False,
        **words: Any,
    ) -> None:  # fmt: skip
        import wandb

        self._keep = run_dir / "wandb_id.txt"
        self._calls, self._patience = Patience(), float(os.environ.get("WANDB_INIT_TIMEOUT", OPENING)) + 1
        self._made_in, self._lost, self._defined = os.getpid(), False, False
        self.wants_model, self._own_id = log_model, words.get("id") or os.environ.get("WANDB_RUN_ID")
        settings = wandb.Settings(**{k: v for k, v in QUIET.items() if f"WANDB_{k.upper()}" not in os.environ})
        super().__init__(
            name=os.environ.get("WANDB_NAME") or name, save_dir=os.environ.get("WANDB_DIR") or run_dir,
            project=project or os.environ.get("WANDB_PROJECT") or PROJECT, offline=offline, settings=settings, **words,
        )  # fmt: skip
        # Said here as well: W&B reads its variables once a process, and Lightning sets one of them.
        self._wandb_init["mode"] = "offline" if offline else "online"
        if "WANDB_RESUME" in os.environ:
            self._wandb_init["resume"] = None  # W&B then takes the variable's
        self._wandb_init.pop("anonymous", None)  # deprecated: W&B warns of it at every start

    @property
    def experiment(self) -> Any:
        """The W&B run; opened offline where it cannot be opened online; None where it is given up."""
        if _is_another_process():
            return WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        if self._experiment is None and not self._lost:
            run = None if self._offline else self._opened("W&B cannot be reached; going on offline")
            if run is None:
                self._lost, self._offline, self._wandb_init["mode"] = False, True, "offline"
                self._calls = Patience()
                run = self._opened("W&B cannot write; going on without it")
            if run is not None and not self._defined:
                self._defined = True
                self.later(lambda: define_axes(run))
        return self._experiment

    def _opened(self, message: str) -> Any:
        if self._keep.is_file() and self._own_id is None:
            self._wandb_init["id"] = self._id = self._keep.read_text(encoding="utf-8").strip()
        run = self._waited(lambda: WandbLogger.experiment.fget(self), message, self._patience)  # type: ignore[attr-defined]
        if run is not None and getattr(run, "id", None):
            with contextlib.suppress(OSError):
                self._keep.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._keep, str(run.id))
        return run

    def later(self, call: Callable[[], Any]) -> None:
        """Makes a call of the W&B run while training goes on; what goes wrong with it is a warning."""
        if self._calls.is_here:
            call()  # a call that is made of others
        elif not _is_another_process() and self.experiment is not None and not self._lost:
            self._guarded(lambda: self._calls.later(call), "W&B stopped; going on without it")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        kept = dict(metrics)  # Lightning goes on with its own
        self.later(lambda: super(MarginWandbLogger, self).log_metrics(kept, step))

    def log_hyperparams(self, params: Any) -> None:
        self.later(lambda: super(MarginWandbLogger, self).log_hyperparams(params))

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        self.later(lambda: super(MarginWandbLogger, self).log_table(*args, **kwargs))

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        self.later(lambda: super(MarginWandbLogger, self).log_image(*args, **kwargs))

    def finalize(self, status: str) -> None:
        # A process forked for training ends without the exit handlers that would write the rest of the run.
        if os.getpid() != self._made_in:
            self.close()

    def close(self) -> None:
        """Ends the W&B run: everything is on disk, and the next run of this process is another."""
        if self._experiment is not None and hasattr(self._experiment, "finish"):
            # A run that W&B gave up on must end as well, or the next one would join it.
            self._lost, self._calls = False, Patience() if self._lost else self._calls
            self._waited(self._finish, "W&B did not close its run; what it has not written is lost to it", None)
        self._experiment, self._lost = None, True

    def _finish(self) -> Any:
        """Ends the W&B run; while its service works, what is left to send has its time."""
        run: Any = self._experiment
        ended = self._calls.begin(run.finish)
        try:
            return ended.result(PATIENCE)
        except TimeoutError:
            if self._offline or service_is_stopped():
                raise
        rank_zero_warn("W&B is sending what is left of the run; Ctrl-C leaves it on disk for `wandb sync`")
        try:
            return ended.result(SENDING)
        except KeyboardInterrupt:
            # Of the sending alone: the run is over, and its files are written.
            raise TimeoutError from None

    def _waited(self, call: Callable[[], Any], message: str, seconds: float | None = PATIENCE) -> Any:
        mode = os.environ.get("WANDB_MODE")
        try:
            return self._guarded(call if seconds is None else lambda: self._calls.now(call, seconds), message)
        finally:
            # Lightning sets it, and the next run of this process would take it for the user's word.
            os.environ.pop("WANDB_MODE", None)
            os.environ |= {} if mode is None else {"WANDB_MODE": mode}

    def _guarded(self, call: Callable[[], Any], message: str) -> Any:
        """The call's result, or None and one warning when W&B or the disk fails, or W&B does not answer."""
        if self._lost:
            return None
        begun = time.monotonic()
        try:
            return call()
        except TimeoutError:
            self._give_up(f"{message} (no answer in {max(time.monotonic() - begun, 0.1):.1g} s)")
            end_service()
            self._experiment = None
        except Exception as error:  # of W&B's own kinds, the system's, and of a service that has died
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            self._give_up(f"{message} ({type(error).__name__}: {reason})")
        return None

    def _give_up(self, told: str) -> None:
        self._lost = True
        rank_zero_warn(told)


def end_service() -> None:
    """Ends W&B's own process, which does not answer: this one would wait for it when it exits."""
    import wandb

    if (service := _service()) is not None:
        service.kill()
    # Of a service that was killed it raises an error of the connection, or exits with its status.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
    wandb.run = None  # or the next run of this process would join one that nobody writes
    os.environ.pop("WANDB_SERVICE", None)


def service_is_stopped() -> bool:
    """Whether W&B's own process is stopped or gone, and will send nothing."""
    service = _service()
    if service is None:
        return False  # another process's, of which nothing is known here
    try:
        state = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return bool(service.poll() is not None)  # another system than Linux does not say
    return state in "TtZX"


def _service() -> Any:
    """W&B's own process, which has no public name; None where a version of W&B keeps it elsewhere."""
    import wandb

    found: Any = wandb.setup()
    for name in ("_connection", "_proc", "_process"):
        found = getattr(found, name, None)
    return found


def _is_another_process() -> bool:
    """Whether this is not the first of several, which alone logs."""
    return int(getattr(rank_zero_only, "rank", 0)) != 0
