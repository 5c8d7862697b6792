"""W&B that is stopped, killed, refused or slow at a random moment: the run ends as one without W&B, at most ten seconds
later."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from tests.reliability.forked import new_folder
from tests.reliability.kills import WORDS, checkpoint, rows, whole, wrong_rows
from tests.reliability.test_resume import assert_same_run

#: Seconds that a run may end later for W&B.
LATER = 10.0
#: Seconds that W&B goes on after training, about: a moment may be among them.
ENDING = 1.5
#: Share of the cases whose service is stopped or killed as soon as it is there, before it has said where it listens.
AT_ONCE = 0.25
#: What becomes of W&B's own process, or of its server.
SIGNALS = {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL}
SERVERS = ("refuses", "never answers", "is slow")
#: What W&B's process needs to hear to believe that its run is there.
BUCKET = {"id": "x", "name": "x", "displayName": "x", "sweepName": None, "historyLineCount": 0,
          "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}}  # fmt: skip
KNOWN = json.dumps({"data": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}}).encode()


class Ended(NamedTuple):
    """How a run ended, and how many seconds after it has written its config.

    Before that it has asked W&B for nothing, and imports for 5 s or, on a busy machine, for 14.
    """

    status: int
    said: str
    seconds: float


def trial(rng: random.Random) -> str | None:
    """One run whose W&B fails in a way and at a moment that are drawn."""
    way = rng.choice((*SIGNALS, *SERVERS))
    seconds = whole(1)[2] + ENDING
    moment = 0.0 if rng.random() < AT_ONCE else rng.uniform(0.0, seconds)
    return wrong_with(way, moment, rng.uniform(0.5, 5.0))


def wrong_with(way: str, moment: float, slowness: float) -> str | None:
    """What is wrong with a run whose W&B fails so.

    Args:
        way: of :data:`SIGNALS` or :data:`SERVERS`.
        moment: seconds after W&B's own process has begun.
        slowness: seconds that a slow server takes to answer.
    """
    unbroken, logged, _ = whole(1)
    told = f"service {way} after {moment:.2f} s" if way in SIGNALS else f"the server {way} ({slowness:.1f} s)"
    with new_folder() as folder:
        try:
            ended = _run_against(way, slowness, folder) if way in SERVERS else _run_broken(way, moment, folder)
        except subprocess.TimeoutExpired:
            return f"{told}: the run waits for W&B for ever"
        if ended.status or "Traceback" in ended.said:
            return f"{told}: status {ended.status}: {ended.said[-1000:]}"
        if (later := _later(ended)) > LATER:
            return f"{told}: the run ended {later:.1f} s later than without W&B"
        try:
            assert_same_run(unbroken, checkpoint(folder / "run"))
        except AssertionError as error:
            return f"{told}: silent: another end than without W&B ({str(error)[:200]})"
        wrong = wrong_rows(logged, rows(folder / "run"))
        return wrong and f"{told}: {wrong}"


def _run_broken(way: str, moment: float, folder: Path) -> Ended:
    run = Run(folder, "offline")
    service = None
    while service is None and run.process.poll() is None:
        service = service_of(run.process.pid)
        time.sleep(0.005)
    if service is None:
        raise AssertionError("W&B has begun no process of its own, so that nothing was tried")
    time.sleep(moment)
    try:
        if service_of(run.process.pid) == service:
            with contextlib.suppress(ProcessLookupError):
                os.kill(service, SIGNALS[way])
        return run.end()
    finally:
        if is_there(service):
            os.kill(service, signal.SIGKILL)  # left behind


def _run_against(way: str, slowness: float, folder: Path) -> Ended:
    with serving(way, slowness) as address:
        online = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "HOME": str(folder)}
        return Run(folder, "online", online).end()


def _later(ended: Ended) -> float:
    """Than the same run without W&B; where that is too much, than one that is made now: machines are busy at times."""
    later = ended.seconds - without()
    return later if later <= LATER else ended.seconds - _seconds_without()


@cache
def without() -> float:
    """Seconds of the run without W&B."""
    return statistics.median(_seconds_without() for _ in range(2))


def _seconds_without() -> float:
    with new_folder() as folder:
        return Run(folder, "disabled").end().seconds


class Run:
    """A run in a process of its own, which no test has imported W&B in."""

    def __init__(self, folder: Path, mode: str, more: dict[str, str] | None = None) -> None:
        words = [word for word in WORDS if word not in ("--wandb", "disabled")]
        command = [sys.executable, "-m", "lightning_maxmargin", *words, "--wandb", mode, "--run_dir", "run"]
        # Not W&B's own variables: the run would join the service of this process, if it has one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        self.config = folder / "run" / "config.yaml"
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment | (more or {}),
        )  # fmt: skip

    def end(self) -> Ended:
        try:
            said = self.process.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        seconds = time.time() - self.config.stat().st_mtime if self.config.is_file() else 0.0
        return Ended(self.process.returncode, said, seconds)


def service_of(process: int) -> int | None:
    """W&B's own process, a child of this one."""
    found = subprocess.run(["pgrep", "-P", str(process), "wandb-core"], capture_output=True, text=True).stdout
    return int(found.split()[0]) if found else None


def is_there(service: int) -> bool:
    """Whether this is a process of W&B's, also a stopped one."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{service}/comm").read_text().startswith("wandb-core")
    return False


@contextlib.contextmanager
def serving(way: str, slowness: float) -> Iterator[str]:
    """The address of a server that fails so."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if way == "never answers":
                over.wait()
            elif way == "refuses":
                self._answer(500, b"")
            else:
                over.wait(slowness)
                self._answer(200, KNOWN if b"UpsertBucket" in body else b"{}")

        do_GET = do_PUT = do_POST

        def _answer(self, status: int, body: bytes) -> None:
            with contextlib.suppress(OSError):  # of a process that has ended
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
