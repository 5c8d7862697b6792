"""Two and three processes: equal to one, and of one that is lost the others say which and why, and end."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import QUIET, config
from tests.ddp.test_lost_ranks import CAUSES, TIMEOUT_HERE
from tests.ddp.test_lost_ranks import words as words_of_fault
from tests.reliability.forked import begin, new_folder, run, told, wait
from tests.reliability.kills import checkpoint

#: How far weights of several processes may be from those of one, of the largest, after some steps.
APART = {"64-true": 1e-12, "32-true": 1e-6}
#: What several processes measure of the same weights, in float64.
MEASURED = ("selection/tokens", "svm/limit", "status/attention", "status/head")
#: Ways to train: exact directions, and gradients of autograd with a torch optimizer.
TRAINED = (
    (),
    ("--model.optimizer", "NormalizedGD", "--model.gradient", "centred"),
    ("--model.optimizer", "torch.optim.Adam", "--model.gradient", "centred", "--model.optimizer.lr", "0.01"),
    ("--model.optimizer", "NormalizedGD", "--model.attention_lr", "0.1", "--model.head_lr", "0.1"),
)


def equal_trial(rng: random.Random) -> str | None:
    """A run of two or three processes, and the same of one: weights, answers, and how many were counted."""
    world, precision = rng.choice((2, 3)), rng.choice(tuple(APART))
    n, tests = rng.randint(1, 17), rng.randint(1, 17)
    batches = ("--data.batch_size", str(rng.randint(1, n))) if rng.random() < 0.5 else ()
    words = ("fit", "--config", config("tensor"), "--data.path", "data.npz", "--data.test_path", "test.npz", *batches,
             *rng.choice(TRAINED), "--trainer.precision", precision, "--trainer.max_steps", str(rng.randint(1, 20)),
             "--trainer.accelerator", "cpu", *QUIET)  # fmt: skip
    several = ("--trainer.devices", str(world), "--trainer.strategy", "ddp_fork")
    with new_folder() as folder:
        numbers = np.random.default_rng(rng.randrange(2**32))
        for name, size in (("data.npz", n), ("test.npz", tests)):
            keys = numbers.normal(size=(size, 4, 3))
            np.savez(folder / name, keys=keys, labels=numbers.choice([-1.0, 1.0], size))
        one, more = run((*words, "--run_dir", "one"), folder), run((*words, *several, "--run_dir", "more"), folder)
        if one or more:
            return f"status {one}, {more} of {world}: {told(folder)[-500:]} ({' '.join(words)})"
        wrong = _other_weights(folder, APART[precision])
        if wrong and precision == "32-true":
            wrong = _other_than_rounding(folder, words, several)
        wrong = wrong or _other_counts(folder, tests)
    return None if wrong is None else f"silent: {wrong} ({world} processes: {' '.join(words)})"


def _other_weights(folder: Path, apart: float, one: str = "one", more: str = "more") -> str | None:
    found = _apart(folder, one, more)
    name = max(found, key=lambda name: found[name])
    return None if found[name] <= apart else f"{name} is {found[name]:.1e} from that of one"


def _apart(folder: Path, one: str, more: str) -> dict[str, float]:
    """How far weights are from each other, against the largest of one; inf where that is no number."""
    ours, theirs = (checkpoint(folder / name)["state_dict"] for name in (one, more))
    found = {}
    for name, weight in ours.items():
        off = float((weight.double() - theirs[name].double()).abs().max()) / (float(weight.abs().max()) or 1.0)
        found[name] = off if math.isfinite(off) else math.inf
    return found


def _other_than_rounding(folder: Path, words: Sequence[str], several: Sequence[str]) -> str | None:
    """Where steps multiply float32's rounding, as normalised ones near a small gradient: float64 tells it from a fault.

    The same run in float64 must not differ, and one process's float32 must itself be about as far from it (of two such
    cases among 40, one was 2.5e-4 and 2.9e-6 from float64, several 1.4e-4 and 8.9e-7, and float64 itself 1e-13).
    """
    exact = [word if word != "32-true" else "64-true" for word in words]
    for name, more in (("one64", ()), ("more64", several)):
        if status := run((*exact, *more, "--run_dir", name), folder):
            return f"status {status} in float64"
    if wrong := _other_weights(folder, APART["64-true"], "one64", "more64"):
        return f"in float64 {wrong}"
    rounding = max(_apart(folder, "one64", "one").values())
    return _other_weights(folder, 10 * rounding)


def _other_counts(folder: Path, tests: int) -> str | None:
    one, more = (json.loads((folder / name / "summary.json").read_text()) for name in ("one", "more"))
    right = one["test/accuracy"] * tests
    if abs(right - round(right)) > 1e-4 or abs(one["test/accuracy"] - more["test/accuracy"]) > 1e-6:
        return f"test/accuracy is {more['test/accuracy']}, of one {one['test/accuracy']}, of {tests} sequences"
    other = [name for name in MEASURED if one[name] != more[name]]
    return f"{other[0]} is {more[other[0]]!r}, of one {one[other[0]]!r}" if other else None


def lost_trial(rng: random.Random) -> str | None:
    """One process raises, hangs, stops or dies at a random step: all end in time, and the last line names it."""
    what, world, step = rng.choice(sorted(CAUSES)), rng.choice((2, 3)), rng.randint(1, 20)
    rank = rng.randrange(world)
    words = (*words_of_fault(what, rank, world, "ddp_fork"), "--trainer.callbacks.step", str(step), *QUIET)
    with new_folder() as folder:
        start = time.monotonic()
        status = wait(begin((*words, "--run_dir", "run"), folder))
        took, said = time.monotonic() - start, told(folder)
    case = f"rank {rank} of {world} {what} at step {step}"
    lines = said.strip().splitlines() or [""]
    if status != 1 or not lines[-1].startswith(f"maxmargin: error: rank {rank} of {world} {CAUSES[what]}"):
        return f"status {status}: {lines[-1][:300]} ({case})"
    # Of the whole run, which on a busy machine takes seconds to begin.
    return f"it took {took:.0f} s ({case})" if took > TIMEOUT_HERE + 30 else None


def poisoned_trial(rng: random.Random) -> str | None:
    """NaN or Inf in keys, values, labels, a loss or a gradient, at a random step: it ends, and no weight has one."""
    where, number = rng.choice(sorted(PLACES)), rng.choice((torch.nan, torch.inf, -torch.inf))
    step, gradient = rng.randint(0, 6), rng.choice(("exact", "centred", "naive"))
    if where in ("loss", "gradient"):
        gradient = "centred"
    import pytorch_lightning as pl

    from lightning_maxmargin import JointSelection
    from lightning_maxmargin.callbacks import FiniteGuard
    from lightning_maxmargin.data import RandomData
    from lightning_maxmargin.errors import InputError, NonFiniteError
    from lightning_maxmargin.run.checkpoints import verify_checkpoint

    model: Any = JointSelection(dim=4, gradient=gradient, inner_steps=1)
    data = RandomData(n=6, T=3, d=4, batch_size=2, seed=rng.randrange(1000))
    with new_folder() as folder:
        trainer = pl.Trainer(
            max_steps=9, max_epochs=-1, accelerator="cpu", callbacks=[FiniteGuard()], default_root_dir=folder,
            logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        PLACES[where](model, step, number)
        try:
            trainer.fit(model, datamodule=data)
        except (NonFiniteError, InputError) as error:
            told_of = str(error)
        else:
            return f"silent: {number} in {where} at step {step} trained to the end ({gradient})"
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            return f"silent: weights have it: {told_of}"
        good = folder / "checkpoints" / "last_good.ckpt"
        if "\n" in told_of or not good.is_file():
            return f"no good weights are kept, or not a line: {told_of} ({where}, {gradient})"
        verify_checkpoint(good, goes_on=True)
    return None


def _in_a_batch(name: str) -> Any:
    """Puts it into this part of the batch of a step, as a broken encoder would."""

    def poison(model: Any, step: int, number: float) -> None:
        trained = model.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            if model.global_step == step:
                part = getattr(batch, name).clone()
                part.reshape(-1)[0] = number
                batch = type(batch)(**{"keys": batch.keys, "labels": batch.labels, "index": batch.index, name: part})
            return trained(batch, batch_idx)

        model.training_step = training_step

    return poison


def _in_a_gradient(model: Any, step: int, number: float) -> None:
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.register_hook(lambda g: torch.full_like(g, number) if model.global_step == step else g)


def _in_a_loss(model: Any, step: int, number: float) -> None:
    backward = model.manual_backward
    model.manual_backward = lambda loss: backward(loss * number if model.global_step == step else loss)


PLACES = {
    "keys": _in_a_batch("keys"), "labels": _in_a_batch("labels"), "gradient": _in_a_gradient, "loss": _in_a_loss,
}  # fmt: skip
