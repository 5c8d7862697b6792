"""A run that goes on is the checkpoint's: what the user says otherwise is refused in a line, not overridden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.shipped import FLAGS

#: Options of an optimizer that a module sets of each of its groups, from options of its own.
OF_THE_MODULE = ("params", "lr", "initial_lr", "weight_decay", "name")


def refuse_other_words(path: str, kept: Mapping[str, Any], now: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Refuses options of the model, on the command line or in a config, that are not those of the checkpoint.

    Args:
        path: of the checkpoint.
        kept: the model's options that it was trained with.
        now: those of the configuration.
        argv: the command line, whose configs are read.

    Raises:
        InputError: one differs. What nobody says is the checkpoint's.
    """
    for name in dict.fromkeys(words_of_the_model(argv)):
        if name in kept and name in now and not _same(now[name], kept[name]):
            raise InputError(
                f"ckpt_path: {path} was trained with model.{name} {kept[name]}, not {now[name]}; go on with the run's "
                "own config.yaml, or leave that out"
            )


def refuse_other_optimizer(path: str, model: Any, content: Mapping[str, Any]) -> None:
    """Refuses an optimizer of another class or with other options than the one whose state the checkpoint holds.

    Args:
        path: of the checkpoint.
        model: whose ``make_optimizer`` takes parameters; others are left to Lightning.
        content: of the checkpoint.

    Raises:
        InputError: it is another.
    """
    states = content.get("optimizer_states") or []
    if not states or not hasattr(model, "make_optimizer"):
        return
    made = model.make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    own, kept = dict(made.param_groups[0]), dict(states[0]["param_groups"][0])
    names = content.get("optimizers") or []
    name = optimizer_name(made)
    if names and names[0] != name:
        raise InputError(f"ckpt_path: {path} is of the optimizer {names[0]}, not {name}; give model.optimizer that one")
    for option in sorted((own.keys() | kept.keys()) - set(OF_THE_MODULE)):
        if option not in own or option not in kept:
            raise InputError(f"ckpt_path: {path} is of another optimizer than {name}, by its option {option}")
        if not _same(own[option], kept[option]):
            raise InputError(
                f"ckpt_path: {path} was trained with model.optimizer.{option} {kept[option]}, not {own[option]}"
            )


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """As a config names its class.

    Example:
        >>> optimizer_name(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))
        'torch.optim.sgd.SGD'
    """
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def words_of_the_model(argv: Sequence[str]) -> Iterator[str]:
    """Names of the model's options that this command line gives, or a config that it names.

    Example:
        >>> list(words_of_the_model(["--model.lr", ".1", "--model.init_args.rank=3", "--data.seed", "1"]))
        ['lr', 'rank']
    """
    for word in argv:
        if word.startswith("--model."):
            yield word.removeprefix("--model.").removeprefix("init_args.").partition("=")[0].partition(".")[0]
    for model in models_in_configs(argv):
        if isinstance(model, Mapping):
            yield from model.get("init_args") or model


def models_in_configs(argv: Sequence[str]) -> Iterator[Any]:
    """What each config that this command line names says of the model; what is wrong with a file is told elsewhere.

    Example:
        >>> list(models_in_configs(["--config", "model: {rank: 3}", "--config=model: my.Model"]))
        [{'rank': 3}, 'my.Model']
    """
    configs = [b for a, b in pairwise(argv) if a in FLAGS] + [a.partition("=")[2] for a in argv if "--config=" in a]
    for config in configs:
        try:
            text = Path(config).read_text(encoding="utf-8") if Path(config).is_file() else config
            yield yaml.safe_load(text)["model"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
