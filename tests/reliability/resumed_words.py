"""Words of a run that goes on: each counts or is refused in a line, and a refused one leaves the run as it was."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import random
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_maxmargin.cli import main
from lightning_maxmargin.run.resume import OF_THE_CHECKPOINT
from tests.reliability.words import (
    CHEAP,
    CONFIGS,
    STRANGE,
    TEXTS,
    TRAINER,
    Case,
    _overridden,
    names_of,
    options_of,
    path_of,
    run,
    state_of_process,
    word_of,
    wrong_refusal,
)

SAVED_AT, END = 2, 4
#: What a run of several batches and a torch optimizer is told beside its config.
BATCHES = ("--data.batch_size", "2", "--model.optimizer", "torch.optim.SGD", "--model.gradient", "centred",
           "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "0.9", "--seed_everything", "5")  # fmt: skip
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, words) for name, words in CONFIGS.items()},
    "batches": ("joint/random", (*CONFIGS["joint/random"], *BATCHES)),
}
#: Of the Trainer, those that decide how far a run goes.
LIMITS = ("max_steps", "max_epochs", "min_steps", "min_epochs", "max_time", "fast_dev_run", "limit_train_batches")


@functools.cache
def saved(name: str) -> Path:
    """A folder with a run in it that can go on; made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="maxmargin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "texts.csv").write_text(TEXTS)
    config, words = RUNS[name]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["fit", "--config", path_of(config), "--run_dir", "run", *CHEAP, *words]) == 0
    return folder


def trial(rng: random.Random) -> str | None:
    """A run that goes on, in its directory or in a new one, with one more word."""
    name = rng.choice([n for n in RUNS if n != "text/finetune"] if rng.random() < 0.9 else ["text/finetune"])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "work"
        shutil.copytree(saved(name), folder)
        kept = yaml.safe_load((folder / "run" / "config.yaml").read_text())
        key, value = word(rng, RUNS[name][0], kept)
        own = rng.random() < 0.5
        where = ["--run_dir", "run", "--ckpt_path", "last"] if own else [
            "--run_dir", "new", "--ckpt_path", "run/checkpoints/last.ckpt"]  # fmt: skip
        argv = ["--config", "run/config.yaml", *where, "--trainer.max_steps", str(END), f"--{key}={word_of(value)}"]
        case = Case(
            argv, (*names_of(key), "trainer.", "data:", "ckpt_path"), said=(key, value), run_dir="run" if own else "new"
        )
        wrong = judge(case, folder, kept)
    return None if wrong is None else f"{wrong} [{name}: fit {' '.join(argv)[:300]}]"


def word(rng: random.Random, config: str, kept: dict[str, Any]) -> tuple[str, Any]:
    """A key of the command, of all kinds alike, and a value near the one it has, or a strange one."""
    keys = [*options_of(config), *OF_THE_CHECKPOINT, *OF_THE_CHECKPOINT]
    of_group = rng.choice(["model.", "model.", "data.", "trainer.", ""])
    if of_group == "trainer.":
        key = rng.choice(sorted(set(TRAINER) - {"logger", "profiler", "default_root_dir", "fast_dev_run"}))
        return f"trainer.{key}", rng.choice(TRAINER[key])
    key = rng.choice(sorted(key for key in keys if key.startswith(of_group)))
    near = near_to(rng, found(kept, key))
    return key, near if rng.random() < 0.7 else rng.choice(STRANGE)


def found(kept: Any, key: str) -> Any:
    """What a config has for this key."""
    for part in key.split("."):
        kept = kept.get("init_args", kept) if isinstance(kept, dict) and part not in kept else kept
        kept = kept.get(part) if isinstance(kept, dict) else None
    return kept


def near_to(rng: random.Random, value: Any) -> Any:
    """One of its kind, or itself."""
    if isinstance(value, bool):
        return rng.choice((value, not value))
    if isinstance(value, int | float):
        return rng.choice((value, value * 2, value + 1))
    return rng.choice((value, 1, 0.5))


def judge(case: Case, folder: Path, kept: dict[str, Any]) -> str | None:
    """Runs the command, and says what went wrong."""
    before, content = state_of_process(), contents(folder)
    left = run(["fit", *case.argv], folder)
    if state_of_process() != before:
        return f"silent: the process is another than before ({state_of_process()})"
    if left.status is None:
        return f"traceback: {left.err.strip().splitlines()[-1][:300]}"
    if left.status != 0:
        wrong = wrong_refusal(case, left)
        changed = [name for name, data in contents(folder).items() if content.get(name) != data]
        return wrong or (f"refused, and {changed[:5]} changed" if changed and left.status == 2 else None)
    return wrong_run(case, folder / str(case.run_dir), kept)


def wrong_run(case: Case, run_dir: Path, kept: dict[str, Any]) -> str | None:
    """What is wrong with a run that has gone on with a word."""
    assert case.said is not None
    key, value = case.said
    now = yaml.safe_load((run_dir / "config.yaml").read_text())
    if overridden := _overridden(now, key, value):
        return overridden
    if (key.startswith("model") or key in OF_THE_CHECKPOINT) and found(now, key) != found(kept, key):
        return f"silent: {key} is {found(now, key)!r}, and the checkpoint's was {found(kept, key)!r}"
    step = last_step(run_dir, now["trainer"].get("enable_checkpointing") is not False)
    if step <= SAVED_AT or (step != END and key.removeprefix("trainer.") not in LIMITS):
        return f"silent: at step {step}, begun at {SAVED_AT}, to be at {END}"
    return None


def last_step(run_dir: Path, saves: bool) -> int:
    """Of its checkpoint, or of its summary where it was told to save none."""
    if saves:
        return int(torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    return int(json.loads((run_dir / "summary.json").read_text())["steps"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and what is in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
