"""How a module is called on a batch, where the user does not say: by its signature, or as its training step does."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn
from torchmetrics import Metric

Forward = Callable[[Any, Any], Any]
#: What a batch holds for the loss alone.
TARGETS = frozenset({"label", "labels", "y", "target", "targets", "next_sentence_label"})


class Way(NamedTuple):
    """One way to call a module: in words, and as a function of module and batch."""

    name: str
    forward: Forward


class Enough(Exception):
    """The model has been called; what a training step does afterwards is left out."""


def ways_to_call(module: nn.Module, batch: Any) -> list[Way]:
    """What may be meant, the likeliest first.

    Args:
        module: with ``forward``, ``training_step`` or both.
        batch: as a loader gives it.

    Example:
        >>> [way.name for way in ways_to_call(nn.Linear(2, 1), (torch.zeros(3, 2), torch.zeros(3)))]
        ['module(batch[0])', 'module(batch)', 'module(*batch)']
    """
    ways, everything = _by_signature(module, batch)
    step = getattr(type(module), "training_step", None)
    if step is not None and step is not pl.LightningModule.training_step:
        # Of a batch of which forward takes a part only, the training step knows which (a padding mask).
        ways.insert(1 if everything else 0, Way("module.training_step(batch, 0)", training_step))
    return ways


def by_signature(module: nn.Module, batch: Any) -> Any:
    """Calls a module in the likeliest way that ``forward`` has."""
    return _by_signature(module, batch)[0][0].forward(module, batch)


def _by_signature(module: nn.Module, batch: Any) -> tuple[list[Way], bool]:
    """The ways that ``forward`` has, and whether the first takes all of the batch but what a loss needs."""
    first = Way("module(batch[0])", lambda module, batch: module(batch[0]))
    whole = Way("module(batch)", lambda module, batch: module(batch))
    if isinstance(batch, tuple | list) and batch:
        return [first, whole, Way("module(*batch)", lambda module, batch: module(*batch))], len(batch) <= 2
    if not isinstance(batch, Mapping):
        return [whole], True
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names = [name for name in batch if name in parameters or name not in TARGETS]
    else:
        names = [name for name in batch if name in parameters and name not in TARGETS]
    if not names:
        return [whole], True
    left = [name for name in batch if name not in names and name not in TARGETS and isinstance(batch[name], Tensor)]

    def keywords(module: Any, batch: Any) -> Any:
        return module(**{name: batch[name] for name in names if name in batch})

    return [Way(f"module({', '.join(f'{name}=batch[{name!r}]' for name in names)})", keywords), whole], not left


def training_step(module: Any, batch: Any) -> None:
    """Runs a training step for its model call: nothing is logged, stepped or kept.

    Args:
        module: a LightningModule, in evaluation mode.
        batch: on its device.
    """
    count = len(inspect.signature(module.training_step).parameters)
    with without_effects(module):
        try:
            module.training_step(*(batch, 0, 0)[:count])
        except Enough:
            pass
        except RuntimeError as error:
            # A backward of its own, after the model was called.
            if "does not require grad" not in str(error):
                raise


@contextmanager
def without_effects(module: Any) -> Iterator[None]:
    """Logging, optimizers and backward do nothing; buffers, metrics and plain attributes are afterwards as before."""
    with ExitStack() as stack:
        trainer = getattr(module, "_trainer", None)
        if trainer is not None and trainer.loggers:
            stack.callback(setattr, trainer, "loggers", trainer.loggers)
            trainer.loggers = [DummyLogger()]
        watched = [m for m in module.modules() if isinstance(m, Metric) or m is module]
        kept = [(vars(m), _attributes(m)) for m in watched]
        buffers = [(b, b.detach().clone()) for b in module.buffers()]
        for name, instead in _instead(len(trainer.optimizers) if trainer is not None else 1).items():
            stack.callback(_put_back, module, name, module.__dict__.get(name, _put_back))
            object.__setattr__(module, name, instead)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
            for attributes, before in kept:
                for name, (value, content) in before.items():
                    _refill(value, content)
                    attributes[name] = value


def _instead(optimizers: int) -> dict[str, Callable[..., Any]]:
    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    def enough(*args: Any, **kwargs: Any) -> None:
        raise Enough

    silent = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer", "clip_gradients")
    return {
        **dict.fromkeys(silent, nothing),
        "manual_backward": enough,
        "optimizers": lambda *args, **kwargs: [_Idle() for _ in range(optimizers)] if optimizers > 1 else _Idle(),
        "lr_schedulers": lambda *args, **kwargs: _Idle(),
    }


class _Idle:
    """An optimizer, several, or a schedule, of which nothing is done."""

    def __getattr__(self, name: str) -> Any:
        return _Idle()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Idle()

    def __getitem__(self, at: Any) -> Any:
        return _Idle()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        return None


def _put_back(module: Any, name: str, before: Any) -> None:
    if before is _put_back:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = before


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Its own numbers, words, lists and dictionaries, and the tensors of a metric's state, each with its content."""
    kept: dict[str, tuple[Any, Any]] = {}
    for name, value in vars(module).items():
        if name in ("_parameters", "_modules", "_buffers") or "_hooks" in name:
            continue
        if isinstance(value, Tensor):
            kept[name] = value, value.detach().clone()
        elif isinstance(value, list | dict | set):
            kept[name] = value, copy.copy(value)
        elif isinstance(value, int | float | str | bool | type(None)):
            kept[name] = value, value
    return kept


def _refill(value: Any, content: Any) -> None:
    """The same list or tensor again, for others may hold it, and a graph may."""
    if isinstance(value, Tensor):
        if not torch.equal(value, content):
            with torch.no_grad():
                value.copy_(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)
