"""JointSelection shows the options of TokenSelector, and loads checkpoints of when it hid them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection, TokenSelector
from lightning_maxmargin.data import PaperData


def test_every_option_of_the_selector_is_one_of_the_module() -> None:
    of_module = inspect.signature(JointSelection.__init__).parameters
    assert not [p for p in of_module.values() if p.kind is p.VAR_KEYWORD]
    for name, option in inspect.signature(TokenSelector.__init__).parameters.items():
        assert of_module[name].default == option.default, name


@pytest.mark.parametrize(
    "options",
    [
        {"parametrization": "p", "attention_init": [1.0, 2.0], "head_init": [0.5, 0.0]},
        {"parametrization": "W", "query": "own", "own_token": 1, "attention_init": "normal", "init_std": 0.5},
        {"parametrization": "KQ", "rank": 1, "attention_init": "normal", "prompt": [0.0, 3.0]},
        {"query": "separate", "query_dim": 3, "value_dim": 4, "num_classes": 3},
        {"head": "mlp", "hidden": 5, "activation": "tanh"},
    ],
)
def test_options_reach_the_selector(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    loss = "cross_entropy" if "num_classes" in options else "logistic"
    found = JointSelection(2, loss=loss, **options).selector.state_dict()  # type: ignore[arg-type]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        wanted = TokenSelector(2, **options).state_dict()  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_an_earlier_checkpoint_with_few_options_loads(tmp_path: Path) -> None:
    model = JointSelection(dim=2, parametrization="p", attention_lr=0.1, head_lr=0.1)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=5, max_epochs=-1, accelerator="cpu", logger=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(model, datamodule=PaperData("joint_tight"))
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    # It kept what had been given alone.
    content["hyper_parameters"] = {"dim": 2, "parametrization": "p", "attention_lr": 0.1, "head_lr": 0.1}
    torch.save(content, tmp_path / "old.ckpt")
    for name in ("new", "old"):
        loaded = JointSelection.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        assert torch.equal(loaded.selector.p, model.selector.p), name
