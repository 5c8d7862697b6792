"""Calls of a service that may hang: made in order, waited for no longer than is said, given up after one has failed."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_maxmargin.run import wandb_logger
from lightning_maxmargin.run.patience import Patience
from lightning_maxmargin.run.wandb_run import NO_RUN


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


def test_a_call_may_have_more_time_than_others() -> None:
    calls, free, begun = Patience(0.05), threading.Event(), threading.Event()

    def opens() -> None:
        begun.set()
        free.wait()

    calls.later(opens, 60.0)
    begun.wait()
    time.sleep(0.1)
    calls.later(lambda: None)
    free.set()
    assert calls.now(lambda: 4, 60.0) == 4


class Slow:
    """A run of W&B whose end takes as long as it is told."""

    id = "x"

    def __init__(self, **words: Any) -> None:
        self.ended = threading.Event()

    def define_metric(self, *args: Any, **words: Any) -> None:
        """Nothing."""

    def finish(self, exit_code: int) -> None:
        self.ended.wait(60)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a logger whose run does not end, and opens it."""
    import wandb

    monkeypatch.setattr(wandb, "init", Slow)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setattr(wandb_logger, "end_service", lambda: None)
    runs = []

    def make(**words: Any) -> wandb_logger.MarginWandbLogger:
        logger = wandb_logger.MarginWandbLogger(tmp_path, "a", **words)
        logger.opened()
        runs.append(logger.experiment)
        return logger

    yield make
    for run in runs:
        run.ended.set()


def test_an_interrupt_of_the_sending_is_none_of_the_run(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is over: what W&B has not sent is on disk."""
    logger, asked = slow(wait=600), []

    def is_done(call: Any, seconds: float) -> bool:
        asked.append(seconds)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(wandb_logger, "_is_done", is_done)
    with pytest.warns(UserWarning, match="did not close its run"):
        logger.close()
    assert len(asked) == 2
    assert not logger.experiment


def test_an_exit_in_the_service_is_none_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def ends(**words: Any) -> None:
        raise SystemExit(-9)

    monkeypatch.setattr(wandb, "init", ends)
    logger = wandb_logger.MarginWandbLogger(tmp_path, "a")
    assert not logger.experiment.config
    with pytest.warns(UserWarning, match="going on without it"):
        logger.log_metrics({"a": 1.0}, 0)


@pytest.mark.parametrize(
    ("words", "seconds"),
    [({}, 8), ({"log_model": True}, 600), ({"log_model": True, "wait": 3}, 3), ({"wait": 100}, 100), ({"wait": 0}, 0)],
)
def test_how_long_the_end_is_waited_for(
    words: dict[str, Any], seconds: float, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, clock = slow(**words), [0.0]

    def is_done(call: Any, seconds: float) -> bool:
        clock[0] += seconds
        return False

    monkeypatch.setattr(wandb_logger, "_is_done", is_done)
    monkeypatch.setattr(wandb_logger.time, "monotonic", lambda: clock[0])
    with pytest.warns(UserWarning, match=f"no answer in {seconds} s"):
        logger.close()
    assert seconds <= clock[0] <= seconds + 1


def test_a_stopped_service_is_not_waited_for_any_longer(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, waited = slow(log_model=True), []
    monkeypatch.setattr(wandb_logger, "_is_done", lambda call, seconds: waited.append(seconds))
    monkeypatch.setattr(wandb_logger, "service_is_stopped", lambda: True)
    with pytest.warns(UserWarning, match="did not close its run"):
        logger.close()
    assert waited == [4.0]


def test_what_does_nothing_takes_every_call() -> None:
    NO_RUN.config["a"] = 1
    NO_RUN.name = "b"
    assert not NO_RUN.log({"a": 1.0}).more["c"](2)
    with pytest.raises(AttributeError):
        NO_RUN.__array__()


def test_who_asks_a_run_that_is_being_opened_waits_for_it(
    slow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    free = threading.Event()

    def opens(**words: Any) -> Slow:
        free.wait(60)
        return Slow()

    monkeypatch.setattr(wandb, "init", opens)
    logger = wandb_logger.MarginWandbLogger(tmp_path, "b")
    asked = logger.experiment
    assert not free.is_set(), "to have it is not to ask it"
    threading.Timer(0.2, free.set).start()
    assert asked.id == "x"
    logger.experiment.ended.set()
    logger.close()
