"""One process of several raises, hangs, stops or dies: all end in time, and the last line names it and says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist
from torch.distributed.constants import default_pg_timeout

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.ranks import PERIOD, Address, Failure, RollCall, _end_of, is_echo
from lightning_maxmargin.run.processes import START_TIMEOUT, TIMEOUT, limit_waiting
from tests.conftest import QUIET, ROOT, config

TIMEOUT_HERE = 2
CAUSES = {
    "raises": "raised ValueError: only here",
    "dies": "is gone: killed",
    "hangs": f"did not answer for {TIMEOUT_HERE} s; it is in on_train_batch_start (",
    "stops": f"did not answer for {TIMEOUT_HERE} s: it is stopped (SIGSTOP)",
}


def words(what: str, rank: int, world: int, strategy: str) -> tuple[str, ...]:
    fault = ("--trainer.callbacks+=tests.ddp.faults.Fault", "--trainer.callbacks.what", what)
    return (
        "fit", "--trust-config", "--config", config("joint/random"), "--model.inner_steps", "1",
        "--trainer.max_steps", "50", "--trainer.accelerator", "cpu", "--trainer.devices", str(world),
        "--trainer.strategy", strategy, "--timeout", str(TIMEOUT_HERE), *fault, "--trainer.callbacks.rank", str(rank),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "world"), [(1, 2), (0, 2), (1, 3)])
@pytest.mark.parametrize("what", CAUSES)
def test_the_last_line_names_rank_and_cause(what: str, rank: int, world: int, maxmargin: Any) -> None:
    start = time.monotonic()
    outcome = maxmargin(*words(what, rank, world, "ddp_fork"))
    assert time.monotonic() - start < TIMEOUT_HERE + 10
    assert outcome.status == 1
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith(f"maxmargin: error: rank {rank} of {world} {CAUSES[what]}"), outcome.err
    assert "gloo/" not in outcome.err


@pytest.mark.slow
# Each start takes 15 s; which rank it is, and what, are told apart by forked processes above.
@pytest.mark.parametrize(("what", "rank"), [("raises", 1), ("dies", 0), ("hangs", 0), ("stops", 1)])
def test_so_it_is_where_the_first_process_starts_the_others(what: str, rank: int, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "lightning_maxmargin", *words(what, rank, 2, "ddp"), *QUIET, "--run_dir", "run"]
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "err").open("w") as err:
        status = subprocess.run(call, stderr=err, stdout=subprocess.DEVNULL, cwd=tmp_path, env=there, timeout=120)
    end, line = time.monotonic() + 10, f"maxmargin: error: rank {rank} of 2 {CAUSES[what]}"
    # Where the first process is killed the shell does not wait for the other one's word.
    while line not in (tmp_path / "err").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    text = (tmp_path / "err").read_text()
    assert text.strip().splitlines()[-1].startswith(line), text
    assert "gloo/" not in text
    assert status.returncode == (1 if rank or what in ("raises", "hangs") else -9)


def test_how_a_child_ended() -> None:
    ends = {"import os; os.kill(os.getpid(), 9)": "killed by SIGKILL", "exit(3)": "it ended with status 3"}
    for code, end in ends.items():
        child = subprocess.Popen([sys.executable, "-c", code])
        assert _end_of(child.pid) == end
        child.wait()
    assert _end_of(os.getppid()) == "killed from outside, or out of memory"


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    own = Address.own()
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    other = Address(own.machine, child.pid, started)
    assert (own.state(), other.state()) == ("there", "there")
    assert Address(own.machine, child.pid, "1").state() == "gone"
    Address(own.machine, child.pid, "1").kill()
    assert other.state() == "there"
    other.kill()
    child.wait()
    assert other.state() == "gone"


def test_the_call_begins_once_all_have_met() -> None:
    # One that stops at its first step, before the others have heard of it, cannot be ended by them.
    store, calls = dist.HashStore(), {}

    def join(rank: int) -> None:
        calls[rank] = RollCall(store, rank, 2, 20.0, print)

    first = threading.Thread(target=join, args=(1,))
    first.start()
    first.join(1.0)
    assert first.is_alive()
    join(0)
    first.join(10.0)
    assert set(calls[1].peers) == {0}
    assert set(calls[0].peers) == {1}
    for rank in (1, 0):
        calls[rank].leave()


def test_it_waits_for_nobody_longer_than_the_run_does() -> None:
    start = time.monotonic()
    RollCall(dist.HashStore(), 1, 2, 0.3, print).leave()
    assert 0.3 <= time.monotonic() - start < 10.0


class EndingStore:
    """A store that lives in a process of its own, which ends when it hears of a failure, as one that hangs does."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self._store = dist.HashStore()
        own = Address.own()
        began = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        self.set("process/0", json.dumps(asdict(Address(own.machine, self.process.pid, began))))

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)
        if key == "failure":
            self.process.kill()
            self.process.wait()

    def __getattr__(self, name: str) -> Any:
        if self.process.poll() is not None:
            raise RuntimeError("the store's process is gone")
        return getattr(self._store, name)


def test_who_ends_because_it_hung_is_not_said_to_be_gone() -> None:
    call = RollCall(EndingStore(), 1, 2, 2.0, print)
    failure = call.blame(RuntimeError("gloo/transport/tcp/pair.cc:547: Timed out"))
    assert str(failure) == "rank 0 of 2 did not answer for 2 s"
    time.sleep(3 * PERIOD)
    assert call.failure == failure
    call._stop.set()


def test_the_store_stays_until_all_have_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    store, ended, there = dist.HashStore(), threading.Event(), asdict(Address.own())
    monkeypatch.setattr(RollCall, "_end", lambda call, failure: (ended.set(), call._stop.set()))
    for rank in (1, 2):
        store.set(f"process/{rank}", json.dumps(there))
    call = RollCall(store, 0, 3, 20.0, print)
    call._noticed = True  # else it ends after some seconds, heard or not
    store.set("failure", json.dumps(asdict(Failure(0, 3, "did not answer", 1, missing=True))))
    store.set("heard/1", "1")
    assert not ended.wait(4 * PERIOD)
    store.set("heard/2", "1")
    assert ended.wait(20.0)


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation",
        "NCCL communicator was aborted on rank 1",
        "Broken pipe",
    ],
)
def test_what_says_only_that_another_is_gone(message: str) -> None:
    assert is_echo(RuntimeError(message))
    assert not is_echo(ValueError(message))


def test_what_a_process_says_itself() -> None:
    assert not is_echo(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class Strategy:
    """What of a strategy waits."""

    def __init__(self, timeout: timedelta = default_pg_timeout) -> None:
        self._timeout = timeout


def test_processes_wait_as_long_as_the_user_says() -> None:
    strategy = Strategy()
    assert limit_waiting(strategy, None) == TIMEOUT
    assert limit_waiting(strategy := Strategy(), 5.0) == 5.0
    assert strategy._timeout.total_seconds() == START_TIMEOUT
    assert limit_waiting(strategy := Strategy(timedelta(seconds=7)), None) == 7.0
    assert strategy._timeout.total_seconds() == 7.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(InputError, match=r"timeout: .* expected a positive number of seconds"):
        limit_waiting(Strategy(), seconds)


def test_two_times_that_differ() -> None:
    with pytest.raises(InputError, match=r"timeout: 5 s, but trainer.strategy's own is 7 s"):
        limit_waiting(Strategy(timedelta(seconds=7)), 5.0)
