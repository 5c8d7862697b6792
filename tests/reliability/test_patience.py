"""Calls of a service that may hang: made in order, waited for no longer than is said, given up after one has failed."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lightning_maxmargin.run import wandb_logger
from lightning_maxmargin.run.patience import Patience


def test_calls_are_made_in_their_order() -> None:
    calls, seen = Patience(), []
    for i in range(5):
        calls.later(lambda i=i: seen.append(i))  # type: ignore[misc]
    assert calls.now(lambda: list(seen)) == [0, 1, 2, 3, 4]


def test_nobody_waits_for_a_call_that_hangs() -> None:
    calls, free, begun = Patience(0.2), threading.Event(), threading.Event()

    def hangs() -> None:
        begun.set()
        free.wait()

    calls.later(hangs)
    begun.wait()
    start = time.monotonic()
    calls.later(lambda: None)
    assert time.monotonic() - start < 0.1
    with pytest.raises(TimeoutError):
        calls.now(lambda: None)
    assert time.monotonic() - start < 1
    with pytest.raises(TimeoutError):
        calls.later(lambda: None)
    free.set()


def test_after_a_failure_no_call_is_made() -> None:
    calls, made = Patience(), []

    def fails() -> None:
        raise ValueError("gone")

    calls.later(fails)
    with pytest.raises(ValueError, match="gone"):
        calls.now(lambda: made.append(1))
    with pytest.raises(ValueError, match="gone"):
        calls.later(lambda: made.append(2))
    assert made == []


def test_a_forked_process_has_a_thread_of_its_own() -> None:
    calls = Patience(5.0)
    assert calls.now(lambda: 1) == 1
    child = os.fork()
    if not child:
        try:
            os._exit(calls.now(lambda: 7))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_spawned_process_has_a_thread_of_its_own() -> None:
    calls = Patience(5.0)
    calls.later(lambda: None)
    assert pickle.loads(pickle.dumps(calls)).now(lambda: 3) == 3


def test_its_own_thread_is_told_apart() -> None:
    calls = Patience()
    assert calls.now(lambda: calls.is_here) is True
    assert calls.is_here is False


def test_an_interrupt_of_the_sending_is_none_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is over: what W&B has not sent is on disk."""

    class Sends:
        id = "x"

        def finish(self) -> None:
            time.sleep(3)

    class Interrupted(Future[Any]):
        asked = 0

        def result(self, timeout: float | None = None) -> Any:
            self.asked += 1
            raise TimeoutError if self.asked == 1 else KeyboardInterrupt

    logger = wandb_logger.MarginWandbLogger(tmp_path, "a", offline=True)
    logger._experiment, logger._offline = Sends(), False
    monkeypatch.setattr(wandb_logger, "service_is_stopped", lambda: False)
    monkeypatch.setattr(wandb_logger, "end_service", lambda: None)
    monkeypatch.setattr(logger._calls, "begin", lambda call: Interrupted())
    with pytest.warns(UserWarning, match="did not close its run"):
        logger.close()
    assert logger._experiment is None
