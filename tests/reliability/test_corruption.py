"""The short form of the damaged checkpoints, and what is never to be gone on from."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maxmargin.callbacks import AttentionSource, HeadMonitor
from lightning_maxmargin.callbacks.at_evaluations import CheckpointAtEvaluations, EarlyStoppingAtEvaluations
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import verify_checkpoint
from lightning_maxmargin.run.content import SUM
from tests.reliability import corruption
from tests.reliability.scenario import assert_none_failed


@pytest.mark.parametrize(("first", "cases"), [(0, 5), pytest.param(5, 35, marks=pytest.mark.slow)])
def test_damaged_checkpoints(first: int, cases: int) -> None:
    assert_none_failed(corruption.trial, cases, seed=0, first=first)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy to damage, without the sum beside."""
    return Path(shutil.copy(corruption.sound("whole").path, tmp_path / "last.ckpt"))


def saved_anew(path: Path, change: Callable[[dict[str, Any]], object], keep_sum: bool = False) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    if not keep_sum:
        del content[SUM]
    torch.save(content, path)


def test_one_number_altered_is_seen_without_a_sum_beside(saved: Path, tmp_path: Path) -> None:
    saved_anew(saved, lambda c: c["state_dict"]["selector.v"].add_(1e-9), keep_sum=True)
    with pytest.raises(InputError, match="was altered after it was saved"):
        verify_checkpoint(saved)
    told = corruption.goes_on("whole", saved, tmp_path / "run")
    assert told.status == 2
    assert not (tmp_path / "run").exists()


def test_without_any_sum_it_goes_on_and_that_is_warned_of(saved: Path, tmp_path: Path) -> None:
    saved_anew(saved, lambda c: None)
    told = corruption.goes_on("whole", saved, tmp_path / "run")
    assert told.status == 0, told.text
    assert "holds no sum of its content" in told.text
    assert corruption.same(corruption.kept(tmp_path / "run"), corruption.sound("whole").end)


def monitor_of(content: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint has of its MarginMonitor."""
    return next(state for state in content["callbacks"].values() if "paths" in state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("loops"), "has no loops"),
        (lambda c: c.pop("optimizer_states"), "has no optimizer_states"),
        (lambda c: c.pop("callbacks"), "has no callbacks"),
        (lambda c: c.update({"pytorch-lightning_version": "1.6.4"}), "pytorch-lightning '1.6.4'"),
        (lambda c: c.update({"pytorch-lightning_version": "x"}), "pytorch-lightning 'x'"),
        (lambda c: c.update(global_step=19), "says step 19, and its loops another"),
        (lambda c: c.update(global_step=-1), "says step -1"),
        (lambda c: c.update(global_step="20"), "by its global_step"),
        (lambda c: c["state_dict"]["selector.v"].fill_(torch.nan), "not finite"),
        (lambda c: c["state_dict"].update({"selector.v": torch.zeros(2).to_sparse()}), "not finite"),
        (lambda c: c["state_dict"].update({"selector.v": torch.zeros(3)}), "its selector.v is (3,), not (2,)"),
        (lambda c: c["state_dict"].update({"selector.v": torch.zeros(2).int()}), "torch.int32"),
        (lambda c: c["state_dict"].update({"selector.v": "x"}), "by its state_dict.selector.v"),
        (lambda c: c["optimizer_states"][0].update(param_groups=[]), "by its optimizer_states.0.param_groups"),
        (lambda c: c["optimizer_states"][0]["state"][0]["momentum"].fill_(torch.inf), "not finite"),
        (lambda c: c["optimizer_states"][0]["state"][0].update(momentum=torch.zeros(7)), "cannot be used"),
        (lambda c: c["hyper_parameters"].update(activationx=1), "activationx"),
        (lambda c: next(iter(c["callbacks"].values())).update(history=[3]), "has no history"),
        (lambda c: monitor_of(c)["history"][0].update(step="1"), "has no history"),
        (lambda c: monitor_of(c)["history"][0].update({"direction_gap/attention": [1]}), "has no history"),
        (lambda c: monitor_of(c).pop("paths"), "has no paths"),
        (lambda c: monitor_of(c).update(paths=[[]]), "has no paths"),
        (lambda c: monitor_of(c)["paths"].append((1, 2, 3)), "has no paths"),
        (lambda c: monitor_of(c)["paths"].append((1, *torch.zeros(2, 7).double())), "paths of other shapes"),
    ],
)  # fmt: skip
def test_what_no_run_goes_on_from(change: Any, said: str, saved: Path, tmp_path: Path) -> None:
    saved_anew(saved, change)
    told = corruption.goes_on("whole", saved, tmp_path / "run")
    errors = [line for line in told.text.splitlines() if line.startswith("maxmargin: error: ")]
    assert told.status == 2, told.text
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in told.text
    assert not (tmp_path / "run").exists()


def rates_of(content: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint has of its schedule of the rate."""
    found: dict[str, Any] = content["lr_schedulers"][0]
    return found


def progress_of(content: dict[str, Any]) -> dict[str, Any]:
    """How many epochs the checkpoint says were begun and done."""
    found: dict[str, Any] = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: rates_of(c)["base_lrs"].insert(0, ""), "lr_schedulers.0.base_lrs (3 of them for 2)"),
        (lambda c: rates_of(c).update(last_epoch="3"), "lr_schedulers.0.last_epoch ('3')"),
        (lambda c: rates_of(c).pop("lr_lambdas"), "lr_schedulers.0.lr_lambdas (missing)"),
        (lambda c: c["lr_schedulers"].clear(), "is of 0 schedules of the rate, and this run has 1"),
        (lambda c: c["lr_schedulers"].append(rates_of(c)), "is of 2 schedules of the rate, and this run has 1"),
        (lambda c: c["optimizer_states"][0]["param_groups"][1].update(lr="x"), "param_groups.1.lr ('x')"),
        (lambda c: progress_of(c).update(ready={"x": {}}), "loops.fit_loop.epoch_progress.current.ready"),
    ],
)  # fmt: skip
def test_what_no_schedule_or_loop_goes_on_from(change: Any, said: str, tmp_path: Path) -> None:
    """Torch puts it in as it is, and a step of training ended in a traceback."""
    path = Path(shutil.copy(corruption.sound("text").path, tmp_path / "last.ckpt"))
    saved_anew(path, change)
    told = corruption.goes_on("text", path, tmp_path / "run")
    errors = [line for line in told.text.splitlines() if line.startswith("maxmargin: error: ")]
    assert told.status == 2, told.text
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows", [3, [3], [(1, 2)], [("1", {})], [(1, {"a": [0.5]})]])
def test_rows_of_a_head_monitor_that_are_none(rows: Any) -> None:
    monitor = HeadMonitor(AttentionSource("q", "k", heads=1), data=[torch.zeros(1)])
    state = monitor.state_dict()
    monitor.load_state_dict(state)
    with pytest.raises(InputError, match="ckpt_path: its HeadMonitor has no attention rows"):
        monitor.load_state_dict({**state, "rows": rows})


@pytest.mark.parametrize("callback", [EarlyStoppingAtEvaluations, CheckpointAtEvaluations])
def test_evaluations_that_are_no_count(callback: Any) -> None:
    made = callback(monitor="norm/attention")
    with pytest.raises(InputError, match="has not counted evaluations"):
        made.load_state_dict({**made.state_dict(), "evaluations_seen": "3"})


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_is_of_every_number(seed: int, saved: Path) -> None:
    rng = random.Random(seed)

    def one_bit(content: dict[str, Any]) -> None:
        tensors = [*content["state_dict"].values(), content["optimizer_states"][0]["state"][1]["momentum"]]
        numbers = rng.choice(tensors).view(torch.int64).reshape(-1)
        numbers[rng.randrange(len(numbers))] ^= 1

    saved_anew(saved, one_bit, keep_sum=True)
    with pytest.raises(InputError, match="was altered"):
        verify_checkpoint(saved)
