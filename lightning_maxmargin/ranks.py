"""Which process of a run is lost, and why: each says where it is in the store in which all of them met."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed as dist

from lightning_maxmargin.errors import InputError, NonFiniteError

#: Seconds between two words of a process.
PERIOD = 0.25
#: Seconds that a process waits for the others' words before it says who is missing.
GRACE = 2.0
#: Seconds that it waits at most for them to begin: one that was lost before can say nothing.
MEETING = 30.0
#: What a process says whose neighbour has gone or stopped: Gloo's and NCCL's words (the store has errors of its own).
ECHO = re.compile(r"gloo/|nccl|connection (closed|reset|was likely closed)|broken pipe|processgroup", re.I)
#: Where a process waits for others: no place to hang in.
WAITING_FILES = ("torch/distributed/", "torch/autograd/")


@dataclass(frozen=True)
class Failure:
    """What ended a run of several processes.

    Attributes:
        rank: of the process that is to blame.
        world: how many there are.
        cause: what became of it.
        teller: the rank whose process prints it.
        status: exit status.
        trace: the traceback of an error that is nobody's input.
        missing: whether the process is there and does not answer.
    """

    rank: int
    world: int
    cause: str
    teller: int
    status: int = 1
    trace: str = ""
    missing: bool = False

    def __str__(self) -> str:
        if self.status == 2:
            return f"{self.cause} (rank {self.rank} of {self.world})"
        return f"rank {self.rank} of {self.world} {self.cause}"


@dataclass(frozen=True)
class Address:
    """A process: on which machine, its number there, and when it began, since numbers come again."""

    machine: str
    pid: int
    began: str

    @classmethod
    def own(cls) -> Address:
        # Containers on one machine may share its name and not its numbers of processes.
        space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
        return cls(f"{socket.gethostname()} {space}", os.getpid(), _stat(os.getpid())[1])

    def state(self) -> str:
        """``there``, ``stopped`` or ``gone``; ``there`` for a process of another machine."""
        if self.machine != Address.own().machine:
            return "there"
        state, began = _stat(self.pid)
        if began != self.began or state in ("Z", "X"):
            return "gone"
        return "stopped" if state in ("T", "t") else "there"

    def kill(self) -> None:
        """Ends the process where it is on this machine."""
        if self.machine == Address.own().machine and self.state() != "gone":
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process of this machine."""
    try:
        # Behind the name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except OSError:
        # No such process, or (macOS) no such folder.
        if Path("/proc/self/stat").exists():
            return "X", ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "X", ""
    return "R", ""


def is_echo(error: BaseException) -> bool:
    """Whether an error only says that another process has gone, or does not answer.

    Example:
        >>> is_echo(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9000"))
        True
    """
    kinds = (dist.DistError,) if hasattr(dist, "DistError") else ()
    return isinstance(error, (*kinds, ConnectionError)) or (
        type(error) is RuntimeError and ECHO.search(str(error)) is not None
    )


class RollCall:
    """One process's part of the call: a thread says where it is, and hears of the others.

    It begins once all have said who they are: one that stops before cannot be ended, and its parent waits 30 s for it.
    A process that raises says why before it goes. One whose collective fails asks who else waits: who does not is gone,
    stopped, or somewhere else, and is named. A process that hears of a failure and does not notice by itself is ended.
    All words to the store are the thread's: one to a store whose process is stopped never returns.

    Args:
        store: in which all processes meet.
        rank: of this process.
        world: how many there are.
        timeout: seconds after which a collective gives up, for the message.
        tell: called once with the failure by the process that found it.
        quiet: whether somebody else prints what this process finds.
    """

    def __init__(
        self, store: Any, rank: int, world: int, timeout: float, tell: Callable[[Failure], None], quiet: bool = False
    ) -> None:
        self.rank, self.world, self.timeout, self.tell, self.quiet = rank, world, timeout, tell, quiet
        self.failure: Failure | None = None
        self.peers: dict[int, Address] = {}
        self._store = store
        self._main = threading.get_ident()
        self._own: Failure | None = None  # to be published
        self._waits = self._noticed = False
        self._others_wait: set[int] = set()
        self._places: dict[int, str] = {}
        self._heard = time.monotonic()
        self._since = 0.0
        self._stop, self._met = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._call, name="roll-call", daemon=True)
        self._thread.start()
        self._met.wait(min(timeout, MEETING))

    # --- the main thread --------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Ends this process's part: all is well. The first process goes last, for the store may live in it."""
        end = time.monotonic() + GRACE
        self._stop.set()
        self._thread.join(GRACE)
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "1")
            others = [f"left/{r}" for r in range(1, self.world)]
            while self.rank == 0 and time.monotonic() < end and not self._store.check(others):
                time.sleep(0.02)

    def blame(self, error: BaseException) -> Failure:
        """Who is to blame for this error of the main thread: its own process, unless it echoes another's."""
        self._noticed = True
        if is_echo(error):
            self._waits = True
            self._wait_for_failure(GRACE)
            if self.failure is None:
                self._publish(self._missing())
        else:
            self._publish(self._raised(error))
        assert self.failure is not None
        if self.failure.missing and self.rank == self._keeper():
            self._end_others({self.failure.rank})
        return self.failure

    def _wait_for_failure(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.failure is None and time.monotonic() < end:
            time.sleep(0.02)

    def _publish(self, failure: Failure) -> None:
        """Says it, unless another process was first; where the store is silent this process is on its own."""
        self._own = failure
        self._wait_for_failure(GRACE)
        if self.failure is None:
            self._know(failure)

    def _raised(self, error: BaseException) -> Failure:
        if isinstance(error, InputError):
            return Failure(self.rank, self.world, str(error), self.rank, 2)
        text = " ".join(str(error).split())
        known = isinstance(error, NonFiniteError)
        trace = "" if known else "".join(traceback.format_exception(error))
        cause = f"stopped: {text}" if known else f"raised {type(error).__name__}: {text}"
        return Failure(self.rank, self.world, cause, self.rank, 1, trace)

    def _missing(self) -> Failure:
        """The process that neither waits nor says why."""
        if time.monotonic() - self._heard > GRACE:
            # The store lives in the first process (under torchrun and SLURM on its machine).
            return self._lost(0)
        absent = [r for r in range(self.world) if r != self.rank and r not in self._others_wait]
        elsewhere = [r for r in absent if not any(f in self._places.get(r, "") for f in WAITING_FILES)]
        return self._lost((elsewhere or absent or [self.rank])[0])

    def _lost(self, rank: int) -> Failure:
        state = self.peers[rank].state() if rank in self.peers else "there"
        if rank == self.rank:
            cause = "lost its connection to the others"
        elif state == "gone":
            cause = f"is gone: {_end_of(self.peers[rank].pid)}"
        else:
            place = self._places.get(rank, "")
            where = ": it is stopped (SIGSTOP)" if state == "stopped" else f"; it is in {place}" if place else ""
            cause = f"did not answer for {self.timeout:g} s{where}"
        return Failure(rank, self.world, cause, self.rank, missing=state != "gone" and rank != self.rank)

    # --- the thread -------------------------------------------------------------------------------------------

    def _call(self) -> None:
        address = json.dumps(asdict(Address.own()))
        lost = False
        while not self._stop.is_set():
            try:
                if not lost:
                    self._round(address)
                    self._heard = time.monotonic()
            except RuntimeError:
                # The store's process has gone; another try would print another page of torch's.
                lost = True
                self._met.set()
            if self.failure is None and time.monotonic() - self._heard > GRACE and self._is_gone(0):
                self._know(self._lost(0))
            if self.failure is not None and self._is_overdue(self.failure):
                self._end(self.failure)
            self._stop.wait(PERIOD if self._met.is_set() else PERIOD / 10)

    def _round(self, address: str) -> None:
        store = self._store
        store.set(f"process/{self.rank}", address)
        store.set(f"place/{self.rank}", _place_of(self._main))
        if self._waits:
            store.set(f"waits/{self.rank}", "1")
        if self._own is not None:
            self._declare(self._own)
        for r in range(self.world):
            if r != self.rank:
                self._hear(r)
        if len(self.peers) == self.world - 1 or self.failure is not None:
            self._met.set()
        if self.failure is None and store.check(["failure"]):
            self._know(Failure(**json.loads(store.get("failure"))))
        if self.failure is not None:
            store.set(f"heard/{self.rank}", "1")

    def _hear(self, rank: int) -> None:
        if rank not in self.peers and self._store.check([f"process/{rank}"]):
            self.peers[rank] = Address(**json.loads(self._store.get(f"process/{rank}")))
        if self._waits and self._store.check([f"place/{rank}"]):
            self._places[rank] = self._store.get(f"place/{rank}").decode()
        if self._waits and self._store.check([f"waits/{rank}"]):
            self._others_wait.add(rank)
        if self.failure is None and self._is_gone(rank) and not self._store.check([f"left/{rank}"]):
            self._declare(self._lost(rank))

    def _declare(self, failure: Failure) -> None:
        """The first process to do so is right: the others' errors follow from it."""
        self._own = None
        if self._store.add("failures", 1) == 1:
            try:
                self._store.set("failure", json.dumps(asdict(failure)))
            finally:
                # Known here before it is heard: who is to blame ends at once, and the store may end with it.
                self._know(failure)

    def _is_gone(self, rank: int) -> bool:
        return rank in self.peers and self.peers[rank].state() == "gone"

    def _know(self, failure: Failure) -> None:
        if self.failure is None:
            self._since, self.failure = time.monotonic(), failure
            if failure.teller == self.rank:
                self.tell(failure)

    def _is_overdue(self, failure: Failure) -> bool:
        """Whether the main thread does not notice: it computes, or hangs, and may do so for ever."""
        if failure.missing and failure.rank == self.rank and self._all_have_heard():
            return True
        return not self._noticed and time.monotonic() - self._since > GRACE

    def _all_have_heard(self) -> bool:
        """Of the failure: the store may end with this process, and who had not heard would only see it gone."""
        with suppress(RuntimeError):
            return bool(self._store.check([f"heard/{r}" for r in range(self.world) if r != self.rank]))
        return True

    def _end(self, failure: Failure) -> None:
        if self.rank == self._keeper():
            self._end_others(set(self.peers))
        if failure.teller == self.rank and not self.quiet:
            print_failure(failure)
        os._exit(failure.status)

    def _keeper(self) -> int:
        """The first process of this machine that is there and not to blame: it sees the others end."""
        mine = Address.own().machine
        blamed = self.failure.rank if self.failure is not None and self.failure.missing else -1
        there = [r for r, p in self.peers.items() if p.machine == mine and p.state() == "there" and r != blamed]
        return min([*there, *([self.rank] if self.rank != blamed else [])], default=-1)

    def _end_others(self, ranks: set[int]) -> None:
        """Waits for the ends of these processes on this machine, and ends those that stay."""
        mine = Address.own().machine
        waiting = [self.peers[r] for r in ranks if r in self.peers and self.peers[r].machine == mine]
        end = time.monotonic() + 2 * GRACE
        while time.monotonic() < end and any(p.state() == "there" for p in waiting):
            time.sleep(0.05)
        for process in waiting:
            process.kill()

    def end_others(self) -> None:
        """After a failure: the first process of this machine goes last, when no other is left."""
        if self.rank == self._keeper():
            self._end_others(set(self.peers))


def print_failure(failure: Failure) -> None:
    """The last line of a run that failed, after the traceback of an error that is nobody's input."""
    print(f"{failure.trace}maxmargin: error: {failure}", file=sys.stderr, flush=True)


def _end_of(pid: int) -> str:
    """How a process ended, which only its parent knows."""
    end = time.monotonic() + 1.0
    with suppress(OSError, AttributeError):
        # Its first thread ends before the others do, and then it has not ended yet.
        while time.monotonic() < end:
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_code != os.CLD_EXITED:
                return f"killed by {signal.Signals(found.si_status).name}"
            if found is not None:
                return f"it ended with status {found.si_status}"
            time.sleep(0.02)
    return "killed from outside, or out of memory"


def _place_of(thread: int) -> str:
    """Where a thread is: the innermost frame, of code above torch and Lightning where there is some."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    inner = frame
    while frame is not None and any(f"/{name}/" in frame.f_code.co_filename for name in ("torch", "pytorch_lightning")):
        frame = frame.f_back
    if any(f in inner.f_code.co_filename for f in WAITING_FILES) or frame is None:
        frame = inner
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def default_store() -> Any:
    """A connection of one's own to the store of the process group."""
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    store = store.clone() if hasattr(store, "clone") else store
    store.set_timeout(timedelta(seconds=GRACE))
    return store
