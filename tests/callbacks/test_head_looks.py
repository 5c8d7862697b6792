"""What heads look at between two evaluations."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_maxmargin import HeadMonitor
from lightning_maxmargin.callbacks.head_looks import first_of
from lightning_maxmargin.errors import InputError
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from tests.callbacks.test_margin_monitor import trainer


class Slow(HeadMonitor):
    """Its evaluations cost more than any budget has."""

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._clock.covers_another = lambda: False  # type: ignore[method-assign]


def run(monitor: HeadMonitor, rate: float = 0.0, steps: int = 40) -> Foreign:
    torch.manual_seed(3)
    module = Foreign()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), rate)  # type: ignore[method-assign]
    trainer([monitor], steps).fit(module, DataLoader(TensorDataset(*some_data().tensors), 4, shuffle=True))
    return module


def test_a_look_has_the_attention_of_an_evaluation() -> None:
    looked = Slow(SEPARATE, some_data().tensors, budget=0.9, maps=3)
    run(looked)
    steps = [step for step, _ in looked.rows]
    assert len(looked.history) == 1, "the last alone"
    assert (steps[0], steps[-1]) == (0, 40)
    assert len(steps) > 5
    for _, attention in looked.rows:
        for head, rows in attention.items():
            assert rows.shape == (3, 5)
            torch.testing.assert_close(rows, looked.rows[-1][1][head], rtol=0, atol=1e-12)


def test_looks_change_nothing_of_training_and_count_in_the_budget() -> None:
    with_looks, without = Slow(SEPARATE, some_data().tensors, budget=0.9), HeadMonitor(SEPARATE, some_data().tensors)
    a, b = run(with_looks, 0.1), run(without, 0.1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert len(with_looks.rows) > len(with_looks.history)
    assert with_looks.seconds > 0, "of looks alone: no evaluation before the last was covered"


def test_a_budget_of_one_has_an_evaluation_at_every_step_of_the_schedule() -> None:
    monitor = HeadMonitor(SEPARATE, some_data().tensors, budget=1)
    run(monitor)
    assert [step for step, _ in monitor.rows] == [row["step"] for row in monitor.history]


@pytest.mark.parametrize("kind", [dict, tuple, list, torch.Tensor])
def test_the_first_samples_of_a_batch(kind: type) -> None:
    x, y = torch.arange(12).reshape(6, 2), torch.arange(6)
    if kind is torch.Tensor:
        assert first_of(x, 2).tolist() == [[0, 1], [2, 3]]
        return
    batch = {"x": x, "y": y, "n": 5} if kind is dict else kind([x, y, 5])
    found = first_of(batch, 2)
    assert type(found) is kind
    first, second, rest = found.values() if kind is dict else found
    assert (first.shape, second.tolist(), rest) == ((2, 2), [0, 1], 5)


class TokensFirst(pl.LightningModule):
    """Takes (T, n, d), as torch's layers do unless told otherwise; its forward logs and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head, self.calls = nn.Linear(8, 2), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen += 1
        found: torch.Tensor = self.head(self.encoder(x)[0])
        self.log("size", found.abs().mean())
        return found

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run_tokens_first(*monitors: HeadMonitor) -> tuple[TokensFirst, float]:
    torch.manual_seed(0)
    module, x, y = TokensFirst(), torch.randn(7, 6, 8), torch.arange(6) % 2
    fit = trainer(list(monitors), 12)
    fit.fit(module, DataLoader([(x, y)], batch_size=None))
    return module, float(fit.callback_metrics["size"])


def test_looks_of_batches_with_their_tokens_first_are_of_whole_sequences() -> None:
    monitor = Slow("auto", budget=0.9, maps=3)
    run_tokens_first(monitor)
    assert len(monitor.rows) > 1, "the first look is always made"
    assert {tuple(rows.shape) for _, heads in monitor.rows for rows in heads.values()} == {(3, 7)}


def test_a_forward_that_logs_and_counts_does_so_for_training_alone() -> None:
    (with_looks, size), (without, alone) = run_tokens_first(Slow("auto", budget=0.9)), run_tokens_first()
    assert size == alone
    assert (with_looks.calls, float(with_looks.seen)) == (without.calls, float(without.seen)) == (12, 12.0)


def test_of_all_positions_there_are_evaluations_alone() -> None:
    monitor = Slow("auto", budget=0.9, query_token="all")
    run_tokens_first(monitor)
    assert [step for step, _ in monitor.rows] == [12]


def test_a_position_that_a_later_batch_lacks_is_refused_at_the_start() -> None:
    data = [(torch.randn(2, t, 8), torch.tensor([0, 1])) for t in (7, 5)]
    module = TokensFirst()
    module.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    with pytest.raises(InputError, match=r"query_token: 6; a batch that is watched has 5 tokens"):
        trainer([HeadMonitor("auto", data, query_token=6, budget=0.01)], 3).fit(
            module, DataLoader(data, batch_size=None)
        )


def test_a_monitor_that_watches_a_second_run_forgets_the_first() -> None:
    monitor, key = HeadMonitor("auto", budget=0.9), "encoder.self_attn/head0/norm/attention"
    run_tokens_first(monitor)
    first = monitor.last[key]
    torch.manual_seed(1)
    batch = torch.randn(7, 6, 8), torch.arange(6) % 2
    trainer([monitor], 12).fit(TokensFirst(), DataLoader([batch], batch_size=None))
    assert [row["step"] for row in monitor.history].count(12) == 1
    assert monitor.last[key] != first
