"""FiniteGuard: nothing that is not finite reaches the weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection
from lightning_maxmargin.callbacks import FiniteGuard, guard
from lightning_maxmargin.callbacks.later import ASK_EVERY
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.errors import NonFiniteError
from tests.conftest import config


class Poisoned(RandomData):
    """Sound data whose batch number ``at`` brings NaN in one sequence, as a broken encoder would."""

    def __init__(self, at: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at = at

    def train_dataloader(self) -> Any:
        batches = list(super().train_dataloader())
        bad = batches[self.at]
        keys = bad.keys.clone()
        keys[1] = torch.nan
        batches[self.at] = Sequences(keys, bad.labels, index=bad.index)
        return torch.utils.data.DataLoader(batches, batch_size=None)


@pytest.mark.parametrize("gradient", ["exact", "centred", "naive"])
def test_nan_in_one_sample_stops_before_the_weights(gradient: Any, tmp_path: Path) -> None:
    data = Poisoned(at=2, n=12, batch_size=4, shuffle=False)
    model = JointSelection(dim=32, gradient=gradient)
    trainer = pl.Trainer(
        max_steps=10, max_epochs=-1, accelerator="cpu", callbacks=[FiniteGuard()], default_root_dir=tmp_path,
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"selector\.\w is not finite at step 2 \(samples 9\)"):
        trainer.fit(model, datamodule=data)
    assert all(p.isfinite().all() for p in model.parameters())
    kept = torch.load(tmp_path / "checkpoints" / "last_good.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    for name, weight in model.state_dict().items():
        assert torch.equal(kept["state_dict"][name], weight)


class Overflow(torch.optim.SGD):
    """A rate that no weight survives, from its third step on."""

    taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        if self.taken == 3:
            for group in self.param_groups:
                group["lr"] = 1e30
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(1e30 if self.taken >= 3 else 1.0)
        return super().step(closure)


@pytest.mark.parametrize("large", [False, True])
def test_weights_that_overflow_stop_the_run(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient is finite; without the guard the weights were saved as NaN, and status was 0."""
    monkeypatch.setattr(guard, "KEPT_NUMBERS", 0 if large else 10**6)
    model = JointSelection(dim=32, inner_steps=1, gradient="centred", optimizer=Overflow, attention_lr=1.0, head_lr=1.0)
    trainer = pl.Trainer(
        max_steps=10, max_epochs=-1, accelerator="cpu", callbacks=[FiniteGuard()], default_root_dir=tmp_path,
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    kept = "checkpoints/last.ckpt is of before" if large else "its weights of before are kept"
    with pytest.raises(NonFiniteError, match=rf"selector\.\w overflows in step \d with rate 1e\+30: {kept}"):
        trainer.fit(model, datamodule=RandomData(n=4))
    assert all(p.isfinite().all() for p in model.parameters()) == (not large)
    last_good = tmp_path / "checkpoints" / "last_good.ckpt"
    assert last_good.is_file() == (not large)
    if not large:
        state = torch.load(last_good, weights_only=True)["state_dict"]
        assert all(x.isfinite().all() for x in state.values())


def test_without_the_guard_the_weights_are_ruined(tmp_path: Path) -> None:
    model = JointSelection(dim=32, gradient="centred")
    trainer = pl.Trainer(
        max_steps=5, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=Poisoned(at=2, n=12, batch_size=4, shuffle=False))
    assert not model.selector.W.isfinite().all()


def test_command_line_says_it_in_one_line_and_exits_1(tmp_path: Path, maxmargin: Any) -> None:
    # Finite in float64, infinite once cast to float32.
    np.savez(tmp_path / "data.npz", keys=np.full((2, 2, 2), 1e300) * [[[1, 0], [0, 1]]] * 2, labels=[1.0, -1.0])
    outcome = maxmargin(
        "fit", "--config", config("tensor"), "--data.path", "data.npz", "--trainer.precision", "32-true"
    )
    assert outcome.status == 1
    assert "not finite at step 0 (samples 0, 1)" in outcome.error
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("gradient", ["exact", "centred"])
@pytest.mark.parametrize("at", [0, 2, 9])
def test_the_answer_that_comes_later_finds_the_weights_as_they_were(
    gradient: Any, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the step, the samples and the weights are those of the check that asks at once."""
    kept, said = [], []
    for later in (False, True):
        monkeypatch.setattr(guard, "waiting", SimpleNamespace(answers_at_once=lambda x, later=later: not later))
        torch.manual_seed(0)
        model = JointSelection(dim=32, gradient=gradient, attention_init="normal", head_init="normal")
        folder = tmp_path / str(later)
        trainer = pl.Trainer(
            max_steps=100, max_epochs=-1, accelerator="cpu", callbacks=[FiniteGuard()], default_root_dir=folder,
            logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        with pytest.raises(NonFiniteError) as error:
            trainer.fit(model, datamodule=Poisoned(at=at, n=40, batch_size=4, shuffle=False))
        said.append(str(error.value))
        assert trainer.global_step <= at + 2 * ASK_EVERY
        kept.append(torch.load(folder / "checkpoints" / "last_good.ckpt", weights_only=True)["state_dict"])
    assert said[0] == said[1]
    assert f"at step {at} (samples {4 * at + 1})" in said[0]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_what_no_answer_has_told_is_asked_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "waiting", SimpleNamespace(answers_at_once=lambda x: False))
    model = JointSelection(dim=32, gradient="centred")
    trainer = pl.Trainer(
        max_steps=3, max_epochs=-1, accelerator="cpu", callbacks=[FiniteGuard()], default_root_dir=tmp_path,
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"at step 2 \(samples 9\)"):
        trainer.fit(model, datamodule=Poisoned(at=2, n=12, batch_size=4, shuffle=False))
    assert all(p.isfinite().all() for p in model.parameters())
    assert (tmp_path / "checkpoints" / "last_good.ckpt").exists()
