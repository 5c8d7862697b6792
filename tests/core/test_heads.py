"""Nonlinear heads: shapes, training with centred gradients, what the monitor says of them, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection, MarginMonitor, TokenSelector
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.probe.selector import Probe
from lightning_maxmargin.svm import solve_att_svm
from tests.conftest import config

QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "accelerator": "cpu", "max_epochs": -1,
}  # fmt: skip


def data(n: int = 5) -> Sequences:
    g = torch.Generator().manual_seed(0)
    return Sequences(torch.randn(n, 4, 3, generator=g), torch.tensor([1.0, -1, 1, -1, 1])[:n])


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_those_of_the_mlp_on_the_pooled_tokens(classes: int) -> None:
    model = TokenSelector(3, head="mlp", hidden=8, activation="gelu", num_classes=classes, attention_init="normal")
    output = model(data())
    pooled = torch.einsum("nt,ntd->nd", output.attention, data().keys)
    torch.testing.assert_close(output.logits, model.psi(pooled).squeeze(1) if classes == 2 else model.psi(pooled))
    assert set(model.head_parameters) == {f"psi.{i}.{w}" for i in (0, 2) for w in ("weight", "bias")}
    assert not model.linear


def test_linear_is_the_default_and_unchanged() -> None:
    model = TokenSelector(3)
    assert set(dict(model.named_parameters())) == {"W", "v"}
    assert model.linear
    assert list(model.state_dict()) == ["W", "v", "prompt"]


def test_a_module_that_is_linear_gives_the_gradients_of_v() -> None:
    psi = torch.nn.Linear(3, 1, bias=False)
    by_module = TokenSelector(3, head=psi, attention_init="normal")
    by_v = TokenSelector(3, head_init=psi.weight[0].tolist())
    by_v.W.data = by_module.W.detach().clone()
    for model in (by_module, by_v):
        torch.nn.functional.softplus(-data().labels * model(data()).logits).mean().backward()
    torch.testing.assert_close(by_module.W.grad, by_v.W.grad)
    torch.testing.assert_close(psi.weight.grad[0], by_v.v.grad)


def test_attention_goes_to_the_svm_of_its_tokens() -> None:
    torch.manual_seed(0)
    monitor = MarginMonitor()
    source = RandomData(n=4, T=4, d=12, seed=0)
    model = JointSelection(12, head="mlp", hidden=16, activation="tanh", attention_lr=0.5, head_lr=0.01)
    assert model.gradient == "centred"
    before = [p.clone() for p in model.selector.psi.parameters()]
    pl.Trainer(max_steps=1500, precision="64-true", callbacks=[monitor], **QUIET).fit(model, source)
    last = monitor.last
    train = source.sequences("train")
    svm = solve_att_svm(train.keys, monitor.snapshot.selected)
    assert last["status/attention"] == svm.status == "certified"
    assert last["direction_gap/attention"] == pytest.approx(direction_gap(model.selector.direction, svm.direction))
    assert last["direction_gap/attention"] < 0.05
    assert last["relative_margin/attention"] > 0.8
    nulls = ("norm/head", "norm_ratio", "margin/head", "direction_gap/head", "direction_gap/relaxed")
    assert all(last[k] is None for k in (*nulls, "direction_gap/rate_coupled", "relative_margin/head"))
    assert any(not torch.equal(a.double(), b) for a, b in zip(before, model.selector.psi.parameters(), strict=True))


def test_global_optimality_is_psi_of_single_tokens() -> None:
    model = TokenSelector(3, head=torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)))
    snapshot = Probe(data()).measure(model)
    gamma = data().labels[:, None] * model.psi(data().keys)[..., 0]
    share = (gamma.gather(1, snapshot.selected[:, None])[:, 0] == gamma.max(1).values).double().mean()
    assert snapshot.values["selection/globally_optimal"] == pytest.approx(float(share))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "mlp", "gradient": "exact"}, "nonlinear head"),
        ({"head": "mlp", "head_init": [1.0, 0.0, 0.0]}, "head_init"),
        ({"head": "mlp", "head_init": "data"}, "head_init"),
        ({"head": "mlp", "hidden": 0}, "hidden"),
        ({"head": "mlp", "activation": "sine"}, "activation"),
        ({"head": "tree"}, "tree"),
    ],
)
def test_bad_heads_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        JointSelection(3, **options)


def test_a_module_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match="expected"):
        TokenSelector(3, head=torch.nn.Linear(3, 2))(data())


def test_config_of_an_mlp_and_its_checkpoint(maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/mlp"), "--trainer.max_steps", "40", "--report", "true")
    outcome = maxmargin(*words)
    assert outcome.status == 0, outcome.err
    assert outcome.summary["gradient"] == "centred"
    assert outcome.summary["status/head"] is None
    assert outcome.summary["direction_gap/attention"] is not None
    run = outcome.run_dir
    checkpoint = ("--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert maxmargin("predict", *checkpoint, "--output", "out.jsonl").status == 0
    refused = maxmargin("fit", "--config", config("joint/mlp"), "--model.gradient", "exact")
    assert refused.status == 2
    assert "nonlinear head" in refused.error
