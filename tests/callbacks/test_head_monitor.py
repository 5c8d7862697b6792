"""HeadMonitor on LightningModules that are not ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_maxmargin import AttentionSource, HeadMonitor, MarginMonitor, solve_att_svm
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.capture import capture
from tests.callbacks.test_margin_monitor import trainer
from tests.wandb_files import run_of, said


class Foreign(pl.LightningModule):
    """One layer of separate projections and a classifier on what token 0 reads."""

    def __init__(self, dim: int = 4, heads: int = 2, bias: bool = True, fused: bool = False, kv: int = 0) -> None:
        super().__init__()
        self.heads, self.kv = heads, kv or heads
        if fused:
            self.qkv = nn.Linear(dim, 3 * dim, bias)
        else:
            kept = dim // heads * self.kv
            self.q, self.k, self.v = nn.Linear(dim, dim, bias), nn.Linear(dim, kept, bias), nn.Linear(dim, kept, bias)
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(dim, 2)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, heads, T, T) and values (n, heads, T, dh)."""
        q, k, v = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            t.unflatten(-1, (self.kv, -1)).transpose(1, 2).repeat_interleave(self.heads // self.kv, 1) for t in (k, v)
        )
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), v

    def forward(self, x: Tensor) -> Tensor:
        s, v = self.weights(x)
        return self.out(self.drop((s @ v)[:, :, 0].flatten(1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


SEPARATE = AttentionSource(keys="k", queries="q", values="v", heads=2)


def some_data(n: int = 10, T: int = 5, d: int = 4) -> TensorDataset:
    x = torch.randn(n, T, d, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0, 0] > 0).long())


def fit(module: pl.LightningModule, steps: int = 2, **settings: Any) -> HeadMonitor:
    data = settings.pop("data", some_data().tensors)
    extra = settings.pop("trainer", {})
    monitor = HeadMonitor(data=data, **settings)
    trainer([monitor], steps, **extra).fit(module, DataLoader(TensorDataset(*data[:2]), 4, shuffle=True))
    return monitor


def by_hand() -> tuple[Foreign, Tensor]:
    module = Foreign(dim=2, heads=1, bias=False)
    with torch.no_grad():
        module.q.weight.copy_(torch.eye(2))
        module.k.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    # z = (1, 0); W = K'Q = [[3, 4], [0, 0]] with norm 5 and W z = (3, 0): scores 3, 6, 0, selected 1, smallest row 3.
    # The SVM: p'(1, 0) >= 1 and p'(2, -1) >= 1, so p = (1, 0), margin 1.
    return module, torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])


def test_one_head_by_hand() -> None:
    module, x = by_hand()
    source = AttentionSource(keys="k", queries="q", heads=1, scale=1.0)
    monitor = fit(module, sources=source, data=(x, torch.tensor([0])))
    first = monitor.history[0]
    assert first["step"] == 0
    assert first["head0/norm/attention"] == pytest.approx(5, abs=1e-12)
    assert first["head0/margin/attention"] == pytest.approx(0.6, abs=1e-12)
    assert first["head0/relative_margin/attention"] == pytest.approx(0.6, abs=1e-9)
    assert first["head0/attention/sparsity"] == pytest.approx(1 + math.exp(-3) + math.exp(-6), abs=1e-12)
    assert first["head0/status/attention"] == "certified"
    assert first["head0/attention/selected_value"] is None, "no values were named"
    assert monitor.history[-1]["step"] == 2


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (Foreign(), SEPARATE),
        (Foreign(bias=False), SEPARATE),
        (Foreign(fused=True), AttentionSource(qkv="qkv", heads=2)),
        (Foreign(kv=1), SEPARATE),
    ],
    ids=["separate", "no bias", "fused", "shared keys"],
)
def test_rows_are_the_modules_own_attention(module: Foreign, source: AttentionSource) -> None:
    module.double()
    x, y = some_data().tensors
    monitor = fit(module, sources=source, data=(x.double(), y), trainer={"precision": "64-true"})
    assert monitor.heads is not None
    with torch.no_grad():
        s, v = module.weights(x.double())
    for h in range(2):
        rows = s[:, h, 0]
        torch.testing.assert_close(monitor.heads.attention[f"head{h}"], rows)
        parts = rows * v[:, h].norm(dim=-1)
        share = (parts.gather(1, rows.argmax(1, keepdim=True))[:, 0] / parts.sum(1)).mean()
        assert monitor.last[f"head{h}/attention/selected_value"] == pytest.approx(float(share))


def test_the_svm_is_that_of_the_inputs_with_the_query_bias_as_a_coordinate() -> None:
    module = Foreign().double()
    x, y = some_data().tensors
    monitor = fit(module, sources=SEPARATE, data=(x.double(), y), trainer={"precision": "64-true"})
    assert monitor.heads is not None
    z = torch.cat([x[:, 0], torch.ones(10, 1)], 1).double()
    for h in range(2):
        Q = torch.cat([module.q.weight, module.q.bias[:, None]], 1).detach()[2 * h : 2 * h + 2]
        W = module.k.weight.detach()[2 * h : 2 * h + 2].T @ Q / 2**0.5
        scores = torch.einsum("ntd,de,ne->nt", x.double(), W, z)
        alpha = scores.argmax(1)
        rows = (scores.max(1, keepdim=True).values - scores).scatter(1, alpha[:, None], torch.inf)
        expected = solve_att_svm(x, alpha, queries=z)
        assert monitor.last[f"head{h}/relative_margin/attention"] == pytest.approx(
            float(rows.min() / W.norm()) / expected.margin, rel=1e-6
        )
        median = float(rows.min(1).values.median() / W.norm()) / expected.margin
        assert monitor.last[f"head{h}/relative_margin/median"] == pytest.approx(median, rel=1e-6)
        real = rows[rows.isfinite()] / W.norm()
        assert monitor.last[f"head{h}/svm/rows_met"] == pytest.approx(float((real >= expected.margin).double().mean()))


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-mixed", "bf16-true"])
def test_every_precision_is_watched_in_float64(precision: str) -> None:
    x = some_data().tensors[0]
    torch.manual_seed(0)
    module = Foreign()
    exact = capture(module, {"": SEPARATE}, lambda: module(x), lambda key: None)[""]
    first = fit(module, sources=SEPARATE, trainer={"precision": precision}).history[0]
    h = slice(0, 2)
    Q = torch.cat([exact.query_map.weight, exact.query_map.bias[:, None]], 1)[h]
    norm = float((exact.key_map.weight[h].T @ Q / 2**0.5).norm())
    # The weights themselves are bfloat16 in bf16-true alone.
    assert first["head0/norm/attention"] == pytest.approx(norm, rel=1e-2 if precision == "bf16-true" else 1e-12)
    assert first["heads/certified"] == 2


def test_a_head_that_is_its_svm_has_relative_margin_one() -> None:
    module = Foreign(dim=4, heads=1, bias=False).double()
    x = some_data().tensors[0].double()
    solution = solve_att_svm(x, torch.randint(1, 5, (10,)), queries=x[:, 0])
    assert solution.status == "certified"
    with torch.no_grad():
        module.q.weight.copy_(torch.eye(4))
        module.k.weight.copy_(7 * solution.direction.T)
    source = AttentionSource(keys="k", queries="q", heads=1)
    first = fit(module, sources=source, data=(x, some_data().tensors[1]), trainer={"precision": "64-true"}).history[0]
    assert first["head0/relative_margin/attention"] == pytest.approx(1, abs=1e-7)
    assert first["head0/svm/rows_met"] == 1


class Padded(pl.LightningModule):
    """torch's own encoder, with padding."""

    def __init__(self, batch_first: bool = True, hides: float | None = None) -> None:
        super().__init__()
        self.hides = hides
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=batch_first)
        self.encoder, self.batch_first = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first), batch_first
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        padding = ~tokens if self.hides is None else torch.where(tokens, 0.0, self.hides)
        y = self.encoder(x, src_key_padding_mask=padding)
        return self.out(y[:, 0] if self.batch_first else y[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0], torch.ones(batch[0].shape[:2]) > 0), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("batch_first", "hides"), [(True, None), (False, None), (True, -torch.inf), (False, -1e9), (True, -1e4)]
)
def test_multihead_attention_inside_torchs_encoder(batch_first: bool, hides: float | None) -> None:
    module = Padded(batch_first, hides)
    x, y = some_data(d=8).tensors
    tokens = torch.arange(5) < torch.tensor([5, 4, 3, 2, 5, 4, 3, 2, 5, 2])[:, None]
    sources = {f"block{i}": AttentionSource(attention=f"encoder.layers.{i}.self_attn") for i in range(2)}
    monitor = fit(module, sources=sources, data=(x, y, tokens), forward=lambda m, b: m(b[0], b[2]))
    assert monitor.heads is not None
    module.eval()
    given = x if batch_first else x.transpose(0, 1)
    with torch.no_grad():
        attend = module.encoder.layers[0].self_attn
        _, s = attend(given, given, given, key_padding_mask=~tokens, average_attn_weights=False)
    for h in range(2):
        rows = monitor.heads.attention[f"block0/head{h}"]
        torch.testing.assert_close(rows.float(), s[:, h, 0], atol=1e-6, rtol=1e-5)
        assert not monitor.heads.attention[f"block1/head{h}"][~tokens].any()
    assert monitor.last["heads/certified"] == 4


def test_an_attn_mask_hides_what_it_hides() -> None:
    module = Padded()
    x, y = some_data(d=8).tensors
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    source = AttentionSource(attention="encoder.layers.0.self_attn", query_token=2)
    monitor = fit(module, sources=source, data=(x, y), forward=lambda m, b: m.encoder(b[0], mask=causal))
    assert monitor.heads is not None
    assert monitor.heads.attention["head1"].gt(0).sum(1).tolist() == [3] * 10
    with pytest.raises(InputError, match="adds numbers to scores"):
        fit(module, sources=source, data=(x, y), forward=lambda m, b: m.encoder(b[0], mask=torch.ones(5, 5)))


def test_a_mask_named_in_the_batch_hides_padding() -> None:
    x, y = some_data().tensors
    tokens = torch.arange(5) < torch.tensor([3] * 10)[:, None]
    batch = {"x": x, "tokens": tokens}
    source = AttentionSource(keys="k", queries="q", heads=2, mask="tokens")
    monitor = HeadMonitor(data=batch, sources=source, forward=lambda m, b: m(b["x"]))
    trainer([monitor], 1).fit(Foreign(), DataLoader(TensorDataset(x, y), 4))
    assert monitor.heads is not None
    assert not monitor.heads.attention["head0"][:, 3:].any()
    assert (monitor.heads.selected["head0"] < 3).all()


def test_a_tie_is_infeasible_counted_and_said(tmp_path: Path) -> None:
    module = Foreign(dim=2, heads=1, bias=False)
    nn.init.zeros_(module.k.weight)
    nn.init.zeros_(module.q.weight)
    # All scores are 0, so token 0 counts as selected in both; no W puts it first in both.
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [3.0, 0.0]]])
    source = AttentionSource(keys="k", queries="q", heads=1)
    logger = CSVLogger(tmp_path, "", "")
    monitor = fit(module, sources=source, data=(x, torch.tensor([0, 1])), trainer={"logger": logger})
    assert monitor.last["head0/status/attention"] == "infeasible"
    assert monitor.last["head0/relative_margin/attention"] is None
    assert monitor.last["heads/infeasible"] == 1
    assert "head0 (infeasible)" in monitor.message
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert "head0/norm/attention" in header
    assert "head0/relative_margin/attention" not in header


def test_looks_change_nothing_of_training() -> None:
    weights = []
    for watched in (False, True):
        pl.seed_everything(3, verbose=False)
        module = Foreign()
        loader = DataLoader(some_data(), 4, shuffle=True)
        # The same loader that trains: reading it must not draw from the generator that shuffles it.
        callbacks = [HeadMonitor(sources=SEPARATE, data=loader)] if watched else []
        trainer(callbacks, 12).fit(module, loader)
        weights.append(module.state_dict())
    for name, a in weights[0].items():
        assert torch.equal(a, weights[1][name]), name


def test_hooks_modes_and_gradients_are_restored_after_an_exception() -> None:
    module = Foreign()
    module.train()
    module.drop.eval()
    random = torch.get_rng_state()

    def fail() -> None:
        module(torch.rand(2, 5, 4))
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        capture(module, {"": SEPARATE}, fail, lambda key: None)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert module.training
    assert not module.drop.training, "as its owner left it"
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(torch.get_rng_state(), random)


def test_a_loader_is_read_up_to_the_samples_and_no_further() -> None:
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            while True:
                yield torch.randn(5, 4), 0

    monitor = HeadMonitor(sources=SEPARATE, data=DataLoader(Endless(), 4), samples=6)
    trainer([monitor], 2).fit(Foreign(), DataLoader(some_data(), 4))
    assert monitor.heads is not None
    assert monitor.heads.attention["head1"].shape == (6, 5)
    assert [step for step, _ in monitor.rows] == [0, 1, 2]
    assert monitor.rows[0][1]["head1"].shape == (4, 5)


def test_looks_at_epochs_where_asked() -> None:
    monitor = HeadMonitor(sources=SEPARATE, data=some_data().tensors, every_n_epochs=2)
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=6, accelerator="cpu", logger=False, callbacks=[monitor], **quiet).fit(
        Foreign(), DataLoader(some_data(), 4)
    )
    assert [(row["step"], row["epoch"]) for row in monitor.history] == [(0, 0), (6, 1), (12, 3), (18, 5)]


class Odd(Foreign):
    """What cannot be a source."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Sequential(self.k, nn.ReLU())
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.relu(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (AttentionSource(keys="kk", queries="q", heads=2), "Odd has no submodule 'kk'; the closest is 'k'"),
        (AttentionSource(keys="unused", queries="q", heads=2), "'unused' was not called in one forward pass"),
        (AttentionSource(keys="relu", queries="q", heads=2), "'relu' (Sequential) is not affine"),
        (AttentionSource(keys="k", queries="q", heads=2), "'k' was called 2 times in one forward pass"),
        (AttentionSource(keys="out", queries="q", heads=2), "'out' was given (10, 4); expected (n, T, d)"),
        (AttentionSource(attention="q", heads=2), "'q' is a Linear, not a MultiheadAttention"),
        (AttentionSource(attention="q"), "'q' is a Linear; give heads"),
        (AttentionSource(keys="v", queries="q", heads=3), "3 do not divide queries of width 4"),
        (AttentionSource(keys="v", queries="q", heads=2, query_token=5), "query_token: 5; there are 5 tokens"),
        (AttentionSource(keys="v", queries="q", heads=2, mask=7), "the batch has no tensor 7"),
    ],
)
def test_wrong_sources_give_one_clear_line(source: AttentionSource, message: str) -> None:
    module = Odd()
    with pytest.raises(InputError) as raised:
        fit(module, sources=source)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    "settings",
    [{}, {"keys": "k"}, {"qkv": "a"}, {"qkv": "a", "keys": "k", "queries": "q", "heads": 1}, {"qkv": "a", "heads": 0}],
)
def test_a_source_is_one_of_three_with_heads(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="AttentionSource"):
        AttentionSource(**settings)


def test_without_data_the_trainers_own_are_watched() -> None:
    monitor = HeadMonitor(sources=SEPARATE, samples=6)
    trainer([monitor], 2).fit(Foreign(), DataLoader(some_data(), 4, shuffle=True))
    assert monitor.heads is not None
    assert monitor.heads.attention["head1"].shape == (6, 5)
    # In their own order, whatever shuffles the training.
    given = fit(Foreign(), sources=SEPARATE, data=some_data().tensors, samples=6)
    assert monitor.history[0].keys() == given.history[0].keys()


def test_the_earlier_name_makes_the_same_monitor() -> None:
    """Old scripts and configs: MarginMonitor with sources, and a checkpoint of when it was one class."""
    old = MarginMonitor(sources=SEPARATE, data=some_data().tensors, samples=6, every_n_epochs=2, split="train")
    assert type(old) is HeadMonitor
    assert (old.samples, old.every_n_epochs) == (6, 2)

    class Mine(MarginMonitor):
        pass

    with pytest.raises(InputError, match="Mine: sources are for HeadMonitor; derive from it"):
        Mine(sources=SEPARATE)
    assert type(MarginMonitor(10, "train", some_data().tensors, SEPARATE)) is HeadMonitor


def test_history_of_an_earlier_checkpoint_goes_on(tmp_path: Path) -> None:
    module = Foreign()
    loader = DataLoader(some_data(), 4)
    first = HeadMonitor(SEPARATE, some_data().tensors)
    done = trainer([first], 2)
    done.fit(module, loader)
    done.save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    content["callbacks"]["MarginMonitor"] = {**content["callbacks"].pop("HeadMonitor"), "paths": []}
    torch.save(content, tmp_path / "old.ckpt")
    for name in ("new", "old"):
        again = HeadMonitor(SEPARATE, some_data().tensors)
        trainer([again], 4).fit(module, loader, ckpt_path=str(tmp_path / f"{name}.ckpt"), weights_only=True)
        assert [row["step"] for row in again.history] == [0, 1, 2, 3, 4], name


def test_a_module_that_is_not_ours_is_told_of_sources() -> None:
    with pytest.raises(InputError, match=r"HeadMonitor\(AttentionSource"):
        trainer([MarginMonitor()], 1).fit(Foreign(), DataLoader(some_data(), 4))


@pytest.mark.parametrize(("each_head", "of_heads"), [(None, True), (False, False)])
def test_medians_of_layers_and_the_picture_of_all_heads_reach_wandb(
    each_head: bool | None, of_heads: bool, tmp_path: Path
) -> None:
    x, y = some_data(d=8).tensors
    data = (x, y, torch.ones(10, 5, dtype=torch.bool))
    sources = {f"block{i}": AttentionSource(attention=f"encoder.layers.{i}.self_attn") for i in range(2)}
    logger = WandbLogger(save_dir=tmp_path, offline=True, settings={"silent": True})
    monitor = fit(
        Padded(), sources=sources, data=data, forward=lambda m, b: m(b[0], b[2]), each_head=each_head,
        trainer={"logger": logger},
    )  # fmt: skip
    logger.experiment.finish()
    history = [row["item"] for row in said(tmp_path, "history")]
    last = next(row for row in reversed(history) if "block1/median/norm/attention" in row)
    for layer in ("block0", "block1"):
        heads = [monitor.last[f"{layer}/head{h}/norm/attention"] for h in range(2)]
        assert last[f"{layer}/median/norm/attention"] == pytest.approx(sum(heads) / 2)
        assert (f"{layer}/head0/norm/attention" in last) is of_heads
    assert last["heads/certified"] == monitor.last["heads/certified"]
    assert any(key.startswith("heads/relative_margin.") for row in history for key in row)
    [picture] = (run_of(tmp_path) / "files" / "media" / "images" / "heads").glob("relative_margin*.png")
    with Image.open(picture) as image:
        low, high = image.convert("L").getextrema()
    assert low < high, "drawn, and not of one colour"


def test_one_layer_has_no_median_of_its_own() -> None:
    monitor = fit(Foreign(), sources=SEPARATE)
    numbers = {"head0/norm/attention": 1.0, "head1/norm/attention": 3.0, "heads/certified": 2.0}
    assert monitor.logged(numbers) == numbers
    monitor.each_head = False
    assert monitor.logged(numbers) == {"median/norm/attention": 2.0, "heads/certified": 2.0}


def test_affine_wrappers_are_read_by_evaluation() -> None:
    plain, wrapped = Foreign().double(), Foreign().double()
    wrapped.load_state_dict(plain.state_dict())
    wrapped.k = nn.Sequential(nn.Identity(), wrapped.k)
    x = some_data().tensors[0].double()
    a, b = (capture(m, {"": SEPARATE}, lambda m=m: m(x), lambda key: None)[""].key_map for m in (plain, wrapped))
    torch.testing.assert_close(a.weight, b.weight)
    torch.testing.assert_close(a.bias, b.bias)


def test_copies_of_the_selected_key_cost_no_margin() -> None:
    """A word that stands twice has two equal keys where positions are not coded: the SVM asks no lead between them."""
    x = some_data(4, 5).tensors[0]
    single = DataLoader(TensorDataset(x, torch.arange(4) % 2), 4)
    double = DataLoader(TensorDataset(torch.cat([x, x], 1), torch.arange(4) % 2), 4)
    found = []
    for loader in (single, double):
        torch.manual_seed(0)
        monitor = HeadMonitor(sources={"layer": SEPARATE})
        trainer(monitor, max_steps=1).fit(Foreign(), loader)
        found.append([monitor.last[f"layer/head{h}/relative_margin/attention"] for h in range(2)])
    assert all(share is not None and share > 0 for share in found[0])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
