"""W&B that never costs a training run: offline where it cannot be reached, given up where it does not answer."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.callbacks.axes import define_axes
from lightning_maxmargin.run.patience import PATIENCE, Patience
from lightning_maxmargin.run.wandb_launch import launch_where_staged
from lightning_maxmargin.run.wandb_run import NO_RUN, RunToCome
from lightning_maxmargin.run.wandb_service import end_service, kill_services, service_is_stopped

PROJECT = "lightning-maxmargin"
#: Seconds that W&B itself may take to reach its server, and those after which a run that is not open is given up:
#: nobody waits for it meanwhile, and a busy machine or a far server is slow.
OPENING, LONGEST_OPENING = 30.0, 60.0
#: Seconds of those at the end of a run after which a service that is stopped is given up, and a run that is not open
#: yet goes on offline, which takes the others to open and to write.
REACHING = 4.0
#: Seconds that a run which is over waits for its checkpoint to be sent, while W&B's service works.
SENDING = 600.0
#: Share of that waiting for each of two processes that end a run one after the other: one was forked for training.
OF_TWO = 0.4
#: Silent: the table at the end of a run says what there is to say, and W&B asks nothing on the terminal; no copies of
#: code or terminal output. Each counts where W&B's variable of its name is not set.
QUIET: dict[str, Any] = {
    "silent": True, "console": "off", "disable_git": True, "save_code": False, "init_timeout": OPENING,
}  # fmt: skip


class MarginWandbLogger(WandbLogger):
    """W&B that never costs a training run, with an axis for every metric.

    Without a key, a network, a disk or a server it warns once and goes on offline, or not at all. Nothing waits for it:
    the run is opened, and all its calls are made, on a thread of their own, and where one is not answered the run is
    given up. A run that is over waits ``wait`` seconds for all that is left, or until Ctrl-C. The run id is kept in
    ``wandb_id.txt`` of the run directory, so that a run that goes on there goes on with its W&B run. Each key of
    ``lightning_maxmargin.keys`` is drawn against its own axis, all else against ``trainer/global_step``.

    Args:
        run_dir: the run directory; the W&B run lies there, or in ``WANDB_DIR``.
        name: of the run, where ``WANDB_NAME`` says none.
        project: None is ``WANDB_PROJECT``, else ``lightning-maxmargin``.
        offline: write to disk alone.
        log_model: whether the last checkpoint becomes an artifact.
        wait: seconds to wait at the end; None is 8, or 600 where a checkpoint is to be sent.
        words: what else ``wandb.init`` takes: entity, group, job_type, tags, notes, id.
    """

    #: A monitor defines them for loggers that do not do so themselves.
    has_axes = True

    def __init__(
        self, run_dir: Path, name: str, project: str | None = None, offline: bool = True, log_model: bool = False,
        wait: float | None = None, **words: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            name=os.environ.get("WANDB_NAME") or name, save_dir=os.environ.get("WANDB_DIR") or run_dir,
            project=project or os.environ.get("WANDB_PROJECT") or PROJECT, **words,
        )  # fmt: skip
        # Said to W&B itself, which reads its variable once a process.
        self._wandb_init["mode"] = "offline" if offline else "online"
        if "WANDB_RESUME" in os.environ:
            self._wandb_init["resume"] = None  # W&B then takes the variable's
        self._begin_here(run_dir / "wandb_id.txt", log_model, wait)

    @classmethod
    def of_lightnings_own(cls, logger: WandbLogger, keep: Path | None) -> MarginWandbLogger:
        """The logger itself, made one of these, with every option that its user gave; ``keep`` is where its id is."""
        logger.__class__ = cls
        own: Any = logger
        if own._offline:
            # Lightning would say it by W&B's variable, to every later run of this process as well.
            own._offline, own._wandb_init["mode"] = False, "offline"
        own._begin_here(keep, False, None)
        return own

    def _begin_here(self, keep: Path | None, wants_model: bool, wait: float | None) -> None:
        self._keep, self.wants_model = keep, wants_model
        sends_models = wants_model or bool(self._log_model)
        self._wait = (SENDING if sends_models else PATIENCE) if wait is None else wait
        self._calls, self._lost, self._stopped_reaching = Patience(), False, False
        self._made_in, self._opened_in = os.getpid(), 0
        self._opening: Future[None] | None = None
        self._asked_until: float | None = None
        self._folder = ""
        self._wandb_init.pop("anonymous", None)  # deprecated: W&B warns of it at every start
        self._wandb_init["settings"] = _quiet(self._wandb_init.get("settings"))

    @property
    def experiment(self) -> Any:
        """The W&B run; until it is open what waits for it, up to eight seconds in all, where something is asked of it.

        Where it is given up, and on other processes than the first, what takes every call and does nothing.
        """
        if _is_another_process():
            return WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        if self._is_open or self._calls.is_here:
            return self._experiment
        return NO_RUN if self._lost else RunToCome(self.opened)

    @property
    def _is_open(self) -> bool:
        return self._experiment is not None and self._opened_in == os.getpid() and not self._lost

    def opened(self) -> Any:
        """The run, once it is open; or what does nothing, where that takes too long."""
        self._open_once()
        self._asked_until = self._asked_until or time.monotonic() + PATIENCE
        with contextlib.suppress(Exception, SystemExit):
            # What is wrong is told by the next call of the logger.
            self._calls.now(lambda: None, max(0.0, self._asked_until - time.monotonic()))
        return self._experiment if self._is_open else NO_RUN

    def _open_once(self) -> None:
        """Lets the thread open the run of this process, before all else."""
        if self._opened_in != os.getpid() and not self._lost:
            self._opened_in, self._experiment = os.getpid(), None
            self._choose_id()
            self._opening = self._calls.begin(self._open, LONGEST_OPENING)

    def _choose_id(self) -> None:
        """The id that is given, that of the run that goes on, or a new one; known before the run is open."""
        given = self._wandb_init.get("id") or os.environ.get("WANDB_RUN_ID")
        kept = "" if self._keep is None or not self._keep.is_file() else self._keep.read_text(encoding="utf-8").strip()
        if (self._wandb_init.get("resume") or os.environ.get("WANDB_RESUME")) != "auto":
            # With auto W&B finds it in a file of its own.
            kept = kept or uuid.uuid4().hex[:8]
        self._keep_id(given or kept or None)

    def _keep_id(self, found: str | None) -> None:
        self._wandb_init["id"] = self._id = found
        if found and self._keep is not None:
            with contextlib.suppress(OSError):
                self._keep.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._keep, found)

    def _open(self) -> None:
        """Opens the run, offline where it cannot be opened online."""
        launch_where_staged()
        try:
            run = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        except Exception as error:
            if self._lost or not self._is_online:
                raise
            why = "the run is over" if self._stopped_reaching else _reason(error)
            rank_zero_warn(f"W&B cannot be reached; going on offline ({why})")
            self._wandb_init["mode"] = "offline"
            end_service()  # which would say that it has a run of this id
            run = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        self._folder = str(getattr(getattr(run, "settings", None), "sync_dir", ""))
        if getattr(run, "id", self._id) != self._id:
            self._keep_id(run.id)
        _quiet_its_file()
        define_axes(run)

    @property
    def _is_online(self) -> bool:
        said = self._wandb_init.get("mode") or os.environ.get("WANDB_MODE")
        return said not in ("offline", "disabled", "dryrun")

    def later(self, call: Callable[[], Any]) -> None:
        """Makes a call of the W&B run while training goes on; what goes wrong with it is a warning."""
        if self._calls.is_here:
            call()  # a call that is made of others
        elif not _is_another_process() and not self._lost:
            self._open_once()
            self._guarded(lambda: self._calls.later(call), "W&B stopped; going on without it")
            if self._lost and self._experiment is None:
                end_service()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        kept = dict(metrics)  # Lightning goes on with its own
        self.later(lambda: super(MarginWandbLogger, self).log_metrics(kept, step))

    def log_hyperparams(self, params: Any) -> None:
        self.later(lambda: super(MarginWandbLogger, self).log_hyperparams(params))

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        self.later(lambda: super(MarginWandbLogger, self).log_table(*args, **kwargs))

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        self.later(lambda: super(MarginWandbLogger, self).log_image(*args, **kwargs))

    def _scan_and_log_checkpoints(self, checkpoint_callback: Any) -> None:
        def send() -> None:
            # Training goes on meanwhile, and may have put a better one in the place of a checkpoint.
            with contextlib.suppress(FileNotFoundError, ValueError):
                super(MarginWandbLogger, self)._scan_and_log_checkpoints(checkpoint_callback)

        self.later(send)

    @property
    def version(self) -> str | None:
        """The id, chosen here if need be: a ModelCheckpoint names its folder by it before the run is open."""
        if self._id is None and not _is_another_process():
            self._choose_id()
        return self._id

    def finalize(self, status: str) -> None:
        # Not Lightning's, which sends no checkpoint of a run that is still being opened.
        for callback in self._checkpoint_callbacks.values() if status == "success" else ():
            self._scan_and_log_checkpoints(callback)
        # A process forked for training ends without the exit handlers that would write the rest of the run.
        if os.getpid() != self._made_in:
            self.close(share=OF_TWO)

    def close(self, failed: dict[str, Any] | None = None, share: float = 1.0) -> None:
        """Ends the W&B run: everything is on disk, and the next run of this process is another.

        Args:
            failed: what the summary of a run that has failed gets; it then ends with exit code 1.
            share: of the time to wait.
        """
        if self._opened_in == os.getpid():
            if not self._lost:
                self._guarded(lambda: self._wait_for_end(failed, share), "W&B did not close its run")
            elif self._experiment is not None:
                # A run that W&B gave up on must end as well, or the next one would join it; it has been told of.
                self._calls = Patience()
                with contextlib.suppress(Exception, SystemExit):
                    self._wait_for_end(failed, share)
            if self._lost:
                # At its end this process would ask W&B's own, and wait for it or show its error.
                end_service()
        self._experiment, self._lost = None, True

    def _wait_for_end(self, failed: dict[str, Any] | None, share: float) -> None:
        """Waits for what is not done yet, the opening of the run included, while W&B's service is not stopped."""
        begun, wait = time.monotonic(), self._wait * share
        ended = self._calls.begin(lambda: self._finish(failed))
        try:
            if not _is_done(ended, min(wait, REACHING * share)):
                self._stop_reaching()
                if wait > PATIENCE:
                    rank_zero_warn("W&B is sending what is left of the run; Ctrl-C leaves it on disk for `wandb sync`")
                while not service_is_stopped() and time.monotonic() - begun < wait and not _is_done(ended, 0.5):
                    pass
        except KeyboardInterrupt:
            pass  # of the sending alone: the run is over, and its files are written
        if not ended.done():
            left = f"; what it has written lies on disk, `wandb sync {self._folder}` sends it" if self._folder else ""
            raise TimeoutError(f"no answer in {time.monotonic() - begun:.0f} s{left}")
        ended.result()

    def _stop_reaching(self) -> None:
        """Ends an attempt to open the run online; the thread then opens it offline."""
        if self._is_online and self._opening is not None and not self._opening.done():
            self._stopped_reaching = True
            kill_services()

    def _finish(self, failed: dict[str, Any] | None) -> None:
        import wandb

        run: Any = self._experiment
        if failed is not None and hasattr(run, "summary"):
            run.summary.update(failed)
        run.finish(exit_code=int(failed is not None))
        if wandb.run is None:
            # Here, where no one waits for ever: at its own end the process would, for a service that is stopped then.
            with contextlib.suppress(SystemExit):  # with the status of a service that was killed
                wandb.teardown()

    def _guarded(self, call: Callable[[], Any], message: str) -> None:
        """Makes the call, or warns once where W&B or the disk fails, or W&B does not answer."""
        try:
            call()
        except TimeoutError as late:
            self._give_up(f"{message} ({late})")
            self._experiment = None
        except (Exception, SystemExit) as error:  # of W&B's own kinds, the system's, and of a service that has died
            self._give_up(f"{message} ({_reason(error)})")

    def _give_up(self, told: str) -> None:
        self._lost = True
        rank_zero_warn(told)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned opens the run by itself, as a forked one does.
        return {**self.__dict__, "_experiment": None, "_opening": None, "_opened_in": 0}


def _quiet(given: Any) -> Any:
    """Settings of W&B: those that are given, then its variables, then :data:`QUIET`."""
    # Its reports of its own errors make the end of a process wait twenty seconds for a server that does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if given is not None and not isinstance(given, Mapping):
        return given
    ours = {name: x for name, x in QUIET.items() if f"WANDB_{name.upper()}" not in os.environ}
    return wandb.Settings(**{**ours, **(given or {})})


def _quiet_its_file() -> None:
    """Of a ``debug.log`` on a disk that is full nobody has to read: Python's logging prints a page for each line."""
    for handler in logging.getLogger("wandb").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = lambda record: None  # type: ignore[method-assign]


def _is_done(call: Future[Any], seconds: float) -> bool:
    """Whether the call has come back, well or not, within so many seconds."""
    with contextlib.suppress(Exception):
        call.exception(seconds)
    return call.done()


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _is_another_process() -> bool:
    """Whether this is not the first of several, which alone logs."""
    return int(getattr(rank_zero_only, "rank", 0)) != 0
