"""The rule: no training step waits for the device. What has to be asked is asked at evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import Ensemble, JointSelection
from lightning_maxmargin.callbacks import FiniteGuard, Interrupt
from lightning_maxmargin.core import waiting
from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.updates import UPDATES
from lightning_maxmargin.data import RandomData, RandomInstances
from lightning_maxmargin.modules.text import TextSelection
from tests.core import copy_cases
from tests.device.compare import close
from tests.device.pretend import GPU, Gpu
from tests.modules.test_text import text_data

Make = Callable[..., pl.Trainer]


class Waits(pl.Callback):
    """What each training step waited for, from the start of one to the start of the next."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.each = gpu, [Counter(gpu.waits)]

    def on_train_batch_start(self, *_: Any) -> None:
        self.each.append(Counter(self.gpu.waits))

    @property
    def per_step(self) -> list[Counter[str]]:
        """Of every step but the first, after which nothing is there for the first time, and the last."""
        return [after - before for before, after in zip(self.each[2:], self.each[3:], strict=False)]


@pytest.mark.parametrize("gradient", ["exact", "centred", "naive"])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("watched", [pytest.param(False, marks=pytest.mark.slow), True])
def test_joint_selection(gpu: Gpu, trainer: Make, gradient: Any, batch_size: int | None, watched: bool) -> None:
    waits = Waits(gpu)
    run = trainer(max_steps=24, callbacks=[waits, *([FiniteGuard(), Interrupt()] if watched else [])])
    module = JointSelection(dim=5, gradient=gradient, inner_steps=2)
    run.fit(module, datamodule=RandomData(n=12, d=5, batch_size=batch_size))
    assert len(waits.per_step) >= 9
    assert sum(waits.per_step, Counter()) == {}


@pytest.mark.parametrize("loss", ["logistic", ["logistic", "exponential", "correlation"]])
def test_an_ensemble(gpu: Gpu, trainer: Make, loss: Any) -> None:
    waits = Waits(gpu)
    run = trainer(max_steps=30, callbacks=[waits, FiniteGuard(), Interrupt()])
    run.fit(Ensemble(dim=10, loss=loss, inner_steps=3), datamodule=RandomInstances(B=6, ragged=True))
    assert len(waits.per_step) >= 8
    assert sum(waits.per_step, Counter()) == {}


@pytest.mark.parametrize("update", sorted(UPDATES))
@pytest.mark.parametrize("masked", [False, True])
def test_every_rule_of_an_ensemble_from_its_first_step_on(gpu: Gpu, update: str, masked: bool) -> None:
    g = torch.Generator().manual_seed(0)
    keys, labels = torch.randn(4, 3, 5, 6, generator=g), torch.ones(4, 3)
    mask = torch.arange(5) < torch.tensor([5, 4, 2])[:, None]
    data = Instances.stack(keys, labels, mask=mask.expand(4, 3, 5) if masked else None)
    state = EnsembleState(data.to(torch.float64, GPU), update=update)
    with gpu.expecting(0):  # of vectors, which are no work for a singular value decomposition
        state.run(3)


@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({}, "pieces"), ({"parametrization": "KQ", "rank": 4, "query": "cls"}, "words"),
        ({"class_weights": "balanced", "label_smoothing": 0.1, "dropout": 0.1, "per_class": True}, "sentences"),
    ],
)  # fmt: skip
def test_text(gpu: Gpu, trainer: Make, tiny_encoder: Path, tmp_path: Path, options: dict[str, Any], units: str) -> None:
    waits = Waits(gpu)
    run = trainer(max_epochs=2, callbacks=[waits, FiniteGuard(), Interrupt()], limit_val_batches=0)
    run.fit(TextSelection(**options), datamodule=text_data(tmp_path, tiny_encoder, units=units))
    assert len(waits.per_step) >= 15
    assert sum(waits.per_step, Counter()) == {}


def test_a_tuned_encoder_waits_once_for_the_mask_of_transformers(
    gpu: Gpu, trainer: Make, tiny_encoder: Path, tmp_path: Path
) -> None:
    """It asks whether anything is hidden; nothing of ours waits."""
    waits = Waits(gpu)
    run = trainer(max_epochs=1, callbacks=[waits], limit_val_batches=0)
    module = TextSelection(finetune_layers=1, finetune_epochs=1)
    run.fit(module, datamodule=text_data(tmp_path, tiny_encoder, units="words"))
    assert [sum(step.values()) for step in waits.per_step] == [1] * len(waits.per_step)
    assert {name.split(":")[0] for step in waits.per_step for name in step} == {"item text/model.py"}


def test_the_guard_asks_rarely_and_reads_when_the_answer_has_come(gpu: Gpu, trainer: Make) -> None:
    waits = Waits(gpu)
    module = JointSelection(dim=5, gradient="centred", inner_steps=1)
    trainer(max_steps=40, callbacks=[waits, FiniteGuard()]).fit(module, datamodule=RandomData(n=4, d=5))
    assert sum(waits.per_step, Counter()) == {}


@pytest.mark.parametrize("kind", copy_cases.KINDS)
@pytest.mark.parametrize("route", ["exact", "ensemble"])
def test_the_roads_without_a_question_are_as_exact(kind: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks in place of branches, on tensors of the CPU, against 50 digits."""
    monkeypatch.setattr(waiting, "answers_at_once", lambda x: False)
    for seed, gap in enumerate((1.0, 30.0, 300.0, 1e4)):
        cases = [
            copy_cases.draw_case(kind, 2 * (10 * seed + k), gap, torch.float64, queries=k % 2 == 0, mask=False)
            for k in range(0, 8, 2)
        ]
        for case, found in zip(cases, copy_cases.answers(cases, route), strict=True):
            true, allowed = copy_cases.reference(case, route)
            assert copy_cases.relative_error(found, true) <= max(allowed, 1e-9)


def test_both_roads_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a whole run, from a start at which every token is as good as every other."""
    g, ended = torch.Generator().manual_seed(0), []
    keys = torch.randn(5, 4, 6, 8, generator=g, dtype=torch.float64)
    keys[0, 0, 1] = keys[0, 0, 2]
    labels = torch.randint(2, (5, 4), generator=g).double() * 2 - 1
    for at_once in (True, False):
        monkeypatch.setattr(waiting, "answers_at_once", lambda x, at_once=at_once: at_once)
        state = EnsembleState(Instances.stack(keys, labels), attention_lr=1.0)
        state.run(200)
        ended.append([state.attention, state.head])
    close(ended[1], ended[0], 1e-9)
