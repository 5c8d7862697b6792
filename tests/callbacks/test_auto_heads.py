"""HeadMonitor("auto"): no sources, no data and no forward are named."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset
from torchmetrics.classification import BinaryAccuracy

from lightning_maxmargin import AttentionSource, HeadMonitor
from lightning_maxmargin.callbacks.batches import _unshuffled, batches_of
from lightning_maxmargin.callbacks.heads_in_words import heads_in_words
from lightning_maxmargin.callbacks.model_call import ways_to_call
from lightning_maxmargin.errors import InputError
from tests.callbacks.test_margin_monitor import trainer

LENGTHS = [6, 4, 3, 5]


class Tokens(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Right-padded sequences of numbers, as a dictionary or a tuple."""

    def __init__(self, n: int = 16, named: bool = False) -> None:
        self.n, self.named = n, named

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(i))
        mask = torch.arange(6) < LENGTHS[i % 4]
        return {"x": x, "mask": mask, "labels": i % 2} if self.named else (x, mask, i % 2)


class Model(pl.LightningModule):
    """torch's encoder in a training step that logs, counts and measures."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 1)
        self.accuracy, self.losses, self.causal = BinaryAccuracy(), [0.0], causal

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        causal = {"mask": torch.ones(6, 6).triu(1).bool(), "is_causal": True} if self.causal else {}
        return self.encoder(x, src_key_padding_mask=~mask, **causal)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, mask, y = batch.values() if isinstance(batch, dict) else batch
        z = self.out(self.encode(x, mask)[:, 0])[:, 0]
        self.accuracy(z.sigmoid(), y)
        loss = nn.functional.binary_cross_entropy_with_logits(z, y.float())
        self.log_dict({"accuracy": self.accuracy, "loss": loss})
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Manual(Model):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()  # type: ignore[union-attr]


class WithForward(Model):
    """Whose forward forgets the padding, which the training step does not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class ByName(Model):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encode(x, mask)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"], batch["mask"]).square().mean()


def fit(module: pl.LightningModule, monitor: Any, steps: int = 2, loader: Any = None, **settings: Any) -> Any:
    pl.seed_everything(1, verbose=False)
    loader = DataLoader(Tokens(), 4, shuffle=True) if loader is None else loader
    trainer([] if monitor is None else [monitor], steps, **settings).fit(module, loader)
    return monitor


def test_what_is_watched_is_heard_when_training_starts(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    try:
        fit(Model(), HeadMonitor("auto", samples=6))
    finally:
        logger.removeHandler(caplog.handler)
    assert "HeadMonitor: 2 attention layers watched, 4 heads" in caplog.messages


@pytest.mark.parametrize("make", [Model, Manual, WithForward])
def test_a_training_step_says_how_the_module_is_called(make: type[Model]) -> None:
    monitor = fit(make(), HeadMonitor("auto", samples=6))
    assert list(monitor.found.sources) == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    attention = monitor.heads.attention["encoder.layers.0.self_attn/head0"]
    assert attention.gt(0).sum(1).tolist() == [6, 4, 3, 5, 6, 4], "padding is hidden, the samples are in their order"
    assert monitor.last["heads/certified"] == 4
    assert monitor.message.startswith("4 heads, all Att-SVMs certified: ")


@pytest.mark.parametrize("make", [Model, Manual])
def test_watching_changes_nothing(make: type[Model], tmp_path: Any) -> None:
    seen = []
    for watched in (False, True):
        pl.seed_everything(2, verbose=False)
        module = make()
        logger = CSVLogger(tmp_path, str(watched), "")
        fit(module, HeadMonitor(samples=6) if watched else None, 6, logger=logger, log_every_n_steps=1)
        metrics = (tmp_path / str(watched) / "metrics.csv").read_text().splitlines()
        column = metrics[0].split(",").index("loss")
        losses = [row.split(",")[column] for row in metrics[1:] if row.split(",")[column]]
        seen.append((module.state_dict(), module.losses, module.accuracy.update_count, losses))
    (a, *counts), (b, *others) = seen
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert counts == others
    assert len(counts[0]) == 7


def test_a_dictionary_is_taken_by_names() -> None:
    loader = DataLoader(Tokens(named=True), 4)
    assert ways_to_call(ByName(), next(iter(loader)))[0].name == "module(x=batch['x'], mask=batch['mask'])"
    monitor = fit(ByName(), HeadMonitor("auto", samples=4), loader=loader)
    assert monitor.heads.attention["encoder.layers.1.self_attn/head1"].gt(0).sum(1).tolist() == [6, 4, 3, 5]


@pytest.mark.parametrize(
    ("token", "sees"),
    [("auto", LENGTHS), (1, [2] * 4), (-3, [4, 4, 3, 4]), ("all", [2, 6, 3, 5])],
    ids=["the last real", "second", "from the end", "all, evenly thinned"],
)
def test_queries_of_causal_attention(token: Any, sees: list[int]) -> None:
    monitor = fit(Model(causal=True), HeadMonitor(samples=4, query_token=token), loader=DataLoader(Tokens(4), 4))
    assert monitor.heads.attention["encoder.layers.0.self_attn/head0"].gt(0).sum(1).tolist() == sees
    assert monitor.found.sources["encoder.layers.0.self_attn"].causal
    assert monitor.last["monitor/samples"] == 4


def test_validation_data_come_first_and_lists_go() -> None:
    class Validated(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.encode(batch[0], batch[1])

    monitor = HeadMonitor(samples=99)
    pl.seed_everything(1, verbose=False)
    trainer([monitor], 2).fit(Validated(), DataLoader(Tokens(8), 4), [DataLoader(Tokens(3), 2)])
    assert monitor.last["monitor/samples"] == 3
    x, mask, y = next(iter(DataLoader(Tokens(), 5)))
    assert fit(Model(), HeadMonitor(data=(x, mask, y))).last["monitor/samples"] == 5


class Once(IterableDataset):  # type: ignore[type-arg]
    """That ends when it has been read."""

    def __init__(self) -> None:
        self.items = iter([Tokens()[i] for i in range(16)])

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.items)


class Plain(Model):
    """No attention."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)  # type: ignore[assignment]

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x)


class Broken(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise KeyError("image")


@pytest.mark.parametrize(
    ("module", "settings", "loader", "message"),
    [
        (Plain, {}, None, "HeadMonitor.sources: Plain computes no attention in its forward pass"),
        (Broken, {}, None, "HeadMonitor.forward: none follows from the module (module.training_step(batch, 0): Key"),
        (Model, {"forward": lambda m, b: m.encode(b["x"], 1)}, None, "HeadMonitor.forward: it fails (forward(module, "),
        (Model, {}, DataLoader(Once(), 4), "HeadMonitor.data: the trainer's own cannot be read (a Once can be read "),
        (Model, {"layers": "encoder.layer.0"}, None, "the closest is 'encoder.layers.0.self_attn'"),
        (Model, {"query_token": 9}, None, "HeadMonitor.query_token: 9; there are 6 tokens"),
    ],
    ids=["no attention", "no forward", "wrong forward", "no data", "no layer", "no token"],
)  # fmt: skip
def test_what_does_not_follow_is_one_line(module: type[Model], settings: Any, loader: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        fit(module(), HeadMonitor("auto", **settings), loader=loader)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": "bert"}, "'bert'; expected 'auto', an AttentionSource, or several by name"),
        ({"sources": {}}, "expected 'auto'"),
        ({"query_token": "cls"}, "'cls'; expected a position, 'auto' or 'all'"),
        ({"sources": AttentionSource(qkv="a", heads=1), "layers": "a"}, "belong to sources='auto'"),
    ],
)
def test_wrong_words_are_refused_at_once(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HeadMonitor(**settings)


def test_a_layer_that_is_no_xwz_any_more_is_null_and_said() -> None:
    class Drifts(Model):
        """Whose attention is given a position bias once training has begun."""

        def encode(self, x: Tensor, mask: Tensor) -> Tensor:
            bias = torch.zeros(6, 6) + (0.1 * torch.arange(6) if self.training or self.global_step else 0.0)
            return self.encoder.layers[1](self.encoder.layers[0](x), src_mask=bias)

    monitor = HeadMonitor(samples=4)
    with pytest.warns(UserWarning, match=r"encoder.layers.1.self_attn is left out of this evaluation: .*position bias"):
        fit(Drifts(), monitor)
    name = "encoder.layers.1.self_attn/head0/"
    assert monitor.history[0][f"{name}status/attention"] == "certified"
    assert monitor.last[f"{name}status/attention"] is None
    assert monitor.last[f"{name}attention/entropy"] is None
    assert "No certified Att-SVM" in monitor.message
    assert "(not measured)" in monitor.message


def numbers(**heads: tuple[str, float, float, float]) -> dict[str, object]:
    keys = ("status/attention", "relative_margin/attention", "attention/selected_mass", "attention/first")
    return {f"a.{h[1]}.b/head0/{key}": x for h, values in heads.items() for key, x in zip(keys, values, strict=True)}


def test_the_message_tells_soft_from_selecting_and_sinks() -> None:
    soft, hard = ("certified", 1e-3, 0.2, 1.0), ("certified", 0.6, 0.9, 0.1)
    sink, open_ = ("certified", 0.2, 0.95, 1.0), ("infeasible", None, 0.3, 0.5)
    told = heads_in_words(numbers(l0=soft, l1=hard, l2=sink, l3=open_))  # type: ignore[arg-type]
    assert told == (
        "4 heads, 3 with a certified Att-SVM: 2 soft (no token has half of the attention, 1 of them under 1/100 of the "
        "SVM's margin: no selection); 2 selecting (a token has more than half of the attention, 1 of them at half of "
        "the SVM's margin or more). 1 attends to the first token whatever the input (a sink): layer 2/head0. No "
        "certified Att-SVM, so no relative margin: layer 3/head0 (infeasible)."
    )
    assert heads_in_words({}) == ""


def test_a_sequence_of_one_token_has_no_rows() -> None:
    x = torch.randn(4, 1, 8)
    module = Model()
    monitor = HeadMonitor("auto", data=(x,), forward=lambda m, b: m.encoder(b[0]), samples=4)
    fit(module, monitor, loader=DataLoader(Tokens(), 4))
    assert monitor.last["monitor/samples"] == 4
    assert monitor.message


def test_two_loaders_at_once() -> None:
    class Both(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    data = TensorDataset(torch.randn(8, 6, 8), torch.ones(8, 6).bool(), torch.arange(8) % 2)
    loaders = {name: DataLoader(data, 4, shuffle=True) for name in "ab"}
    assert fit(Both(), HeadMonitor(samples=6), loader=loaders).last["monitor/samples"] == 6


def test_attention_within_a_training_step_is_seen() -> None:
    class Bare(Model):
        """No submodule's forward holds it."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

        def encode(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k = (p(x).view(-1, 6, 2, 4).transpose(1, 2) for p in (self.q, self.k))
            s = nn.functional.scaled_dot_product_attention(q, k, q, attn_mask=mask[:, None, None])
            return s.transpose(1, 2).flatten(2)

    monitor = fit(Bare(), HeadMonitor(samples=3))
    assert list(monitor.found.sources) == [""]
    assert monitor.heads.attention["head1"].gt(0).sum(1).tolist() == LENGTHS[:3]


def test_keys_that_would_fill_the_memory_are_of_fewer_samples(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lightning_maxmargin.callbacks.watch.MOST_NUMBERS", 5 * 2 * 6 * 8 + 1)
    with caplog.at_level("INFO"):
        monitor = fit(Model(), HeadMonitor(samples=12))
    assert monitor.last["monitor/samples"] == 5
    assert "5 of 12 samples, for the keys of 2 layers would have 1,152 numbers" in caplog.text


def test_a_split_by_a_sampler_is_watched_and_not_the_whole() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    loader = DataLoader(TensorDataset(x), 2, sampler=SubsetRandomSampler([5, 1, 4]))
    kept = batches_of(_unshuffled(loader), 3)
    assert torch.cat([batch[0] for batch in kept]).tolist() == x[[5, 1, 4]].tolist()
