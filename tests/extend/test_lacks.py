"""What is said of a class of one's own that lacks something: every message of docs/extending.md, provoked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_maxmargin import JointSelection, MarginMonitor, register_key
from lightning_maxmargin.core import Loss, MarginLoss, Sequences, UpdateRule, register_loss
from lightning_maxmargin.core.updates import update_rule
from lightning_maxmargin.data import PaperData, SequenceData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import MarginOptimizer, SignDescent
from lightning_maxmargin.reproduce.experiment import read_experiment
from lightning_maxmargin.svm import register_norm, solve_att_svm, solve_cvxpy
from lightning_maxmargin.text import PlantedText
from lightning_maxmargin.text.cache import cached_vectors
from lightning_maxmargin.text.encoders import find_encoder
from tests.extend.document import sections

FOUR = torch.tensor([1.0, -1.0, 1.0, -1.0])


class Four(SequenceData):
    def load(self) -> dict[str, Sequences]:
        return {"train": Sequences(torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)), FOUR)}


def fit(data: Any = None, monitor: MarginMonitor | None = None, **options: Any) -> None:
    model = JointSelection(dim=2, parametrization="p", **options)
    quiet: dict[str, Any] = {
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
    }  # fmt: skip
    callbacks: Any = [] if monitor is None else [monitor]
    trainer = pl.Trainer(max_steps=3, max_epochs=-1, accelerator="cpu", callbacks=callbacks, **quiet)
    trainer.fit(model, datamodule=data or PaperData("joint_tight"))


def load(returned: Any) -> Callable[[], object]:
    class Mine(SequenceData):
        def load(self) -> Any:
            return returned

    return lambda: Mine().splits


def no_load() -> object:
    class Mine(SequenceData):
        pass

    return Mine().splits


def no_start() -> object:
    class Mine(SequenceData):
        def __init__(self) -> None:
            pl.LightningDataModule.__init__(self)

        def load(self) -> dict[str, Sequences]:
            return {}

    return Mine().splits


def no_name() -> None:
    class Mine(Loss):
        def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
            return logits

    register_loss(Mine())


class Mean(Loss):
    name = "mine"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (-labels * logits).exp().mean()


def no_rule() -> object:
    class Mine(MarginOptimizer):
        pass

    return Mine([torch.nn.Parameter(torch.zeros(1))], 0.1)


def rule_that_is_none() -> None:
    class Mine(MarginOptimizer):
        def rule(self, group: dict[str, Any]) -> Any:
            return 3

    w = torch.nn.Parameter(torch.zeros(1))
    w.grad = torch.ones(1)
    Mine([w], 0.1).step()


def no_step() -> object:
    class Mine(UpdateRule):
        pass

    return update_rule(Mine())


def unknown_norm() -> None:
    class Mine(SignDescent):
        margin_norm = "l7"

    fit(monitor=MarginMonitor(), optimizer=lambda params: Mine(params, 0.1))


def norm(value: Any = lambda w: abs(w).sum(), dual: Any = lambda m: abs(m).max(), **options: Any) -> Callable[[], Any]:
    def solve() -> object:
        register_norm("mine", value, dual, **options)
        return solve_att_svm(torch.tensor([[[2.0, 1.0], [0.0, 0.0]]]), torch.tensor([0]), norm="mine")

    return solve


def encoder(**parts: Any) -> Any:
    return type("Mine", (), parts)()


def metric(returned: Any) -> Callable[[], None]:
    return lambda: fit(monitor=MarginMonitor(metrics={"mine": lambda *_: returned}))


def limit(returned: Any) -> Callable[[], None]:
    return lambda: fit(monitor=MarginMonitor(limits={"mine": lambda *_: returned}))


def problem(objective: Callable[[Any], Any], constraint: Callable[[Any], Any]) -> Callable[[], object]:
    w = cp.Variable(2)
    return lambda: solve_cvxpy(cp.Problem(cp.Minimize(objective(w)), [w >= 1, constraint(w)]))


def experiment(text: str) -> Callable[[], object]:
    def read() -> object:
        Path("mine.py").write_text(text)
        return read_experiment(Path("mine.py"), trusted=True).run(lambda share: None)

    return read


HEAD = "def f(tick):\n    return {}\n\nEXPERIMENT = {'title': 'a', 'source': 'b', 'settings': None, 'function': f"
# Of configs: they are provoked on the command line.
IN_A_CONFIG = ("model.loss: Mine lacks __call__", "monitor.metrics: mine.mine is a int; expected a function")
UNFIT = "data.encoder: Mine needs the arguments and annotations of Encoder, which a config is checked by"
PROVOKED: dict[str, Callable[[], object]] = {
    "register_loss: Mine lacks name": no_name,
    "loss 'mine': log_slope is a NoneType": lambda: MarginLoss("mine", torch.exp, None, None),  # type: ignore[arg-type]
    "loss 'mine': it returned [] for 4 sequences": lambda: fit(Four(), loss=Mean()),
    "register_loss: 3 is no Loss": lambda: register_loss(3),  # type: ignore[arg-type]
    "Mine lacks rule(group)": no_rule,
    "Mine.rule: 3 is no name and no UpdateRule": rule_that_is_none,
    "ensemble: update Mine lacks step(": no_step,
    "Mine.margin_norm: norm 'l7' is unknown": unknown_norm,
    "register_norm: dual of 'mine' is a NoneType": norm(dual=None, expression=cp.norm1),
    "register_norm: 'mine' has neither solve nor expression": norm(),
    "norm 'mine': dual is too small": norm(dual=lambda m: 0.1 * abs(m).max(), expression=cp.norm1),
    "norm 'mine': value is no norm": norm(value=lambda w: (w**2).sum(), expression=cp.norm1),
    "data: Mine lacks load()": no_load,
    "data: Mine.load returned 'test'": load({"test": 3}),
    "data: Mine.load: 'train' is a Tensor": load({"train": FOUR}),
    "data: Mine.__init__ lacks super().__init__": no_start,
    "data.encoder: Mine lacks identity and encode": lambda: find_encoder(encoder()),
    "data.encoder: Mine.identity must be a word": lambda: PlantedText(encoder=encoder(identity=3, encode=len)),
    "data.encoder: Mine.encode returned [3]": lambda: cached_vectors(
        encoder(identity="mine", encode=lambda self, sentences: torch.zeros(3)), ["a"] * 50, "vectors"
    ),
    "metrics: 'mine' is a int": lambda: MarginMonitor(metrics={"mine": 3}),  # type: ignore[dict-item]
    "metrics: 'mine' returned a Tensor of shape [3]": metric(torch.zeros(3)),
    "metrics: 'norm/head' is measured already": lambda: MarginMonitor(metrics={"norm/head": len}),
    "register_key: 'norm/head' is registered": lambda: register_key("norm/head", "mine"),
    "limits: 'mine' returned a NoneType that lacks": limit(None),
    "limits: 'mine': its direction is [3]": limit(
        solve_att_svm(torch.eye(3)[None, :2], torch.tensor([0]))
    ),
    "limit problem: constraint 1": problem(cp.norm, lambda w: cp.norm(w) <= 9),
    "limit problem: the objective": problem(cp.sum, lambda w: w[0] == 3),
    "reproduce: mine.py lacks EXPERIMENT": experiment("x = 3"),
    "reproduce: mine.py: EXPERIMENT lacks 'function'": experiment("EXPERIMENT = {'title': 'a'}"),
    "reproduce: mine.py: key 'claims' is missing": experiment(f"{HEAD}}}"),
    "mine: experiment_mine.f returns no Outcome": experiment(f"{HEAD}, 'claims': []}}"),
}  # fmt: skip
DOCUMENTED = [message for section in sections().values() for message in section.messages]


def test_every_documented_message_is_provoked_here() -> None:
    starts = (*PROVOKED, *IN_A_CONFIG, UNFIT)
    assert len(DOCUMENTED) > 30
    assert [message for message in DOCUMENTED if not message.startswith(starts)] == []
    assert [start for start in starts if not any(message.startswith(start) for message in DOCUMENTED)] == []


@pytest.mark.parametrize("start", PROVOKED)
def test_one_line_says_what_is_missing(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (documented,) = [message for message in DOCUMENTED if message.startswith(start)]
    with pytest.raises(InputError) as raised:
        PROVOKED[start]()
    message = str(raised.value)
    assert "\n" not in message
    assert re.search(re.escape(documented).replace(r"\.\.\.", ".*"), message), message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("identity = 'x'\n    def encode(self, sentences): ...", UNFIT),
        ("identity = 'x'", "data.encoder: Mine lacks encode; see text.encoders.Encoder"),
        ("pass", "data.encoder: Mine lacks identity and encode; see text.encoders.Encoder"),
    ],
)
def test_an_encoder_in_a_config(body: str, message: str, maxmargin: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"class Mine:\n    {body}\n")
    words = ("--data", "PlantedText", "--data.encoder", "{class_path: own.Mine}", "--model.optimizer", "NormalizedGD")
    run = maxmargin("fit", "--trust-config", *words)
    assert run.status == 2
    assert run.error.startswith(f"maxmargin: error: {message}")


@pytest.mark.parametrize(
    ("file", "words", "message"),
    [
        (
            "from lightning_maxmargin.core import Loss\nclass Mine(Loss):\n    name = 'mine'",
            ("--config", "joint/relaxed", "--model.loss", "{class_path: own.Mine}"),
            "model.loss: Mine lacks __call__",
        ),
        (
            "class Mine: ...",
            ("--config", "joint/relaxed", "--model.loss", "{class_path: own.Mine}"),
            "model.loss: own.Mine is no Loss; derive it from Loss",
        ),
        (
            "from lightning_maxmargin.optim import MarginOptimizer\nclass Mine(MarginOptimizer):\n    pass",
            ("--config", "joint/relaxed", "--model.optimizer", "own.Mine", "--model.optimizer.lr", "0.1"),
            "Mine lacks rule(group): return an UpdateRule, or override update(loss)",
        ),
        (
            "class Mine: ...",
            ("--config", "joint/relaxed", "--model.optimizer", "own.Mine"),
            "model.optimizer: own.Mine is no Optimizer; derive it from Optimizer",
        ),
        (
            "from lightning_maxmargin.data import SequenceData\nclass Mine(SequenceData):\n    pass",
            ("--data", "own.Mine", "--model.optimizer", "NormalizedGD"),
            "data: Mine lacks load(): return {'train': Sequences(...)}",
        ),
        (
            "mine = 3",
            ("--config", "joint/relaxed", "--monitor.metrics", "{mine: own.mine}"),
            "monitor.metrics: own.mine is a int; expected a function",
        ),
        (
            "",
            ("--config", "joint/relaxed", "--monitor.limits", "{mine: own.mine}"),
            "monitor.limits: module own has no mine",
        ),
        (
            "def mine(data, selected): ...",
            ("--config", "joint/relaxed", "--monitor.limits", "{mine: own.mine}"),
            "MarginMonitor at step 1: limits: 'mine' returned a NoneType that lacks status, direction, margin",
        ),
    ],
    ids=["loss", "no loss", "optimizer", "no optimizer", "data", "no function", "nothing", "limit"],
)
def test_on_the_command_line_it_is_one_line_and_status_2(
    file: str, words: tuple[str, ...], message: str, maxmargin: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(file + "\n")
    run = maxmargin("fit", "--trust-config", *words, "--trainer.max_steps", "3")
    assert run.status == 2, run.err
    assert run.error.startswith(f"maxmargin: error: {message}"), run.error
    assert "Traceback" not in run.err
