"""The short form of the damaged checkpoints, and what is never to be gone on from."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import verify_checkpoint
from lightning_maxmargin.run.content import SUM
from tests.reliability import corruption
from tests.reliability.scenario import assert_none_failed


def test_damaged_checkpoints() -> None:
    assert_none_failed(corruption.trial, 60, seed=0)


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
