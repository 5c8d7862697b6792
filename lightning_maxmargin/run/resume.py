"""A run that goes on is the checkpoint's: what the user says otherwise is refused in a line, not overridden."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import newest_checkpoint, verify_checkpoint
from lightning_maxmargin.run.flat import flattened
from lightning_maxmargin.run.words import seconds_of

#: Key of a checkpoint: what its run was told.
CONFIG = "maxmargin_config"
#: Words beside those of the model that a run goes on with as it began.
OF_THE_CHECKPOINT = ("seed_everything", "data.batch_size")
#: How data are read, which changes nothing of them.
READING = ("data.num_workers", "data.prefetch", "data.pin_memory", "data.cache_dir")

#: Options of an optimizer that a module sets of each of its groups, from options of its own.
OF_THE_MODULE = ("params", "lr", "initial_lr", "weight_decay", "name")


def kept_words(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of a checkpoint was told, by the names of the command line.

    The whole of its config where a run of ours has saved it, else the options that the model itself has kept.

    Example:
        >>> kept_words({"hyper_parameters": {"rank": 3}}), kept_words({"maxmargin_config": {"model.rank": 3}})
        ({'model.rank': 3}, {'model.rank': 3})
    """
    own = content.get(CONFIG)
    if isinstance(own, Mapping):
        return dict(own)
    of_model = dict(content.get("hyper_parameters") or {})
    named = {"class_path": of_model.pop("_class_path")} if "_class_path" in of_model else {}
    of_model.pop("_instantiator", None)
    return dict(flattened({"model": {**named, **of_model}})) if named or of_model else {}


def refuse_other_words(path: str, kept: Mapping[str, Any], now: Mapping[str, Any], said: Collection[str]) -> None:
    """Refuses words that are not those of the checkpoint, where these are what the run goes on with.

    That is so of the model with its optimizer and schedule, of the seed, and of the batches, whose place in the epoch
    is kept.

    Args:
        path: of the checkpoint.
        kept: what its run was told.
        now: what this one is.
        said: the words to look at, by :func:`words_said`.

    Raises:
        InputError: one differs.
    """
    for name in said:
        of_it = name == "model" or name.startswith("model.") or name in OF_THE_CHECKPOINT
        if of_it and name in kept and name in now and not _same(now[name], kept[name]):
            raise InputError(
                f"ckpt_path: {path} was trained with {name} {kept[name]}, not {now[name]}; go on with the run's "
                "own config.yaml, or leave that out"
            )


def checkpoint_to_go_on(run_dir: Path, trainer: Mapping[str, Any]) -> Path:
    """The newest whole checkpoint of a run in its directory.

    Of one that was killed after its last step, before its summary, the newest with something left to train: the steps
    made again end in the same weights, and the run has its last evaluation, its summary and its report.

    Raises:
        InputError: there is none.
    """
    newest = newest_checkpoint(run_dir)
    content = verify_checkpoint(newest)
    if has_ended(content, trainer) and summarized_step(run_dir) != content.get("global_step"):
        with suppress(InputError):
            return newest_checkpoint(run_dir, lambda found: not has_ended(found, trainer))
    return newest


def summarized_step(run_dir: Path) -> int | None:
    """Where the run was by its ``summary.json``; None without one, or where it was killed before that was complete."""
    try:
        found = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        return None if found["seconds"] is None else int(found["steps"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def nothing_left(content: Mapping[str, Any], trainer: Mapping[str, Any]) -> str | None:
    """In words, that a checkpoint is already where the run would end: Lightning would train nothing without one.

    Args:
        content: of the checkpoint.
        trainer: what is said of the Trainer.

    Example:
        >>> nothing_left({"global_step": 5}, {"max_steps": 5})
        'is at step 5 of 5; raise --trainer.max_steps to go on'
    """
    done = {"step": content.get("global_step"), "epoch": _epochs(content)}
    for unit, made in done.items():
        most = trainer.get(f"max_{unit}s")
        if made is not None and most is not None and 0 <= most <= made:
            return f"is at {unit} {made} of {most}; raise --trainer.max_{unit}s to go on"
    return None


def has_ended(content: Mapping[str, Any], trainer: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of the end of its run: by a count, by an EarlyStopping, or by the time it was given."""
    callbacks = content.get("callbacks")
    states = [x for x in callbacks.values() if isinstance(x, Mapping)] if isinstance(callbacks, Mapping) else []
    stopped = any(state.get("stopping_reason_message") for state in states)
    used = [state["time_elapsed"].get("train", 0.0) for state in states if isinstance(state.get("time_elapsed"), dict)]
    most = None if trainer.get("max_time") is None else seconds_of(trainer["max_time"])
    over = most is not None and any(seconds >= most for seconds in used)
    return nothing_left(content, trainer) is not None or stopped or over


def _epochs(content: Mapping[str, Any]) -> int | None:
    """How many are over, as Lightning will count those of a run that goes on; None where there is no count.

    The epoch of a checkpoint that was saved after its last batch is over, and processed only from then on.
    """

    def count(*keys: str) -> Any:
        found: Any = content.get("loops")
        for key in ("fit_loop", *keys):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, int) else None

    epoch, batch = ("epoch_progress", "current"), "epoch_loop.batch_progress"
    processed, started = count(*epoch, "processed"), count(*epoch, "started")
    if processed is None or started is None:
        return processed
    batches = count(batch, "current", "ready"), count(batch, "current", "processed")
    is_over = count(batch, "is_last_batch") and batches[0] == batches[1]
    return processed + 1 if started > processed and is_over else processed


def other_data(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is said of the data otherwise than when the checkpoint was made, but for how they are read.

    Example:
        >>> other_data({"data.seed": 0, "data.num_workers": 2}, {"data.seed": 1, "data.num_workers": 0})
        ['data.seed 1 (was 0)']
    """
    of_data = [name for name in now if name.startswith("data") and name in kept and name not in READING]
    return [f"{name} {now[name]} (was {kept[name]})" for name in of_data if not _same(now[name], kept[name])]


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
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1, 1))], "name": x, "lr": 1.0} for x in ("attention", "head")]
    made = model.make_optimizer(groups)
    own, kept = dict(made.param_groups[0]), dict(states[0]["param_groups"][0])
    names = content.get("optimizers") or []
    name = optimizer_name(made)
    if names and names[0] != name:
        raise InputError(f"ckpt_path: {path} is of the optimizer {names[0]}, not {name}; give model.optimizer that one")
    if CONFIG in content:
        return  # its words are compared; a schedule, or another torch, may have put more into the groups
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


def words_said(argv: Sequence[str], configs: bool = True) -> list[str]:
    """Names of all that this command line says, or (where these count) a config that it names.

    Args:
        argv: with each config as :func:`~lightning_maxmargin.run.shipped.with_files` writes it.
        configs: whether what they say counts.

    Example:
        >>> words_said(["--model.lr", ".1", "--model.init_args.rank=3", "--config", "{data: {seed: 1}}"])
        ['model.lr', 'model.rank', 'data.seed']
    """
    said = []
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        if word.startswith("--") and word != "--config":
            name, given, value = word.removeprefix("--").replace(".init_args", "").partition("=")
            inner = _read(value if given else following)
            # A class or a dictionary in one word says all that is in it.
            said += [name, *(flattened(inner, name) if isinstance(inner, dict) else ())]
    for config in configs_of(argv) if configs else ():
        said += flattened(config)
    return list(dict.fromkeys(x if isinstance(x, str) else x[0] for x in said))


def configs_of(argv: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The configs that this command line names; what is wrong with a file is told elsewhere.

    Example:
        >>> list(configs_of(["--config", "model: {rank: 3}", "--config", "model: my.Model"]))
        [{'model': {'rank': 3}}, {'model': 'my.Model'}]
    """
    for config in (following for word, following in pairwise(argv) if word == "--config"):
        try:
            found = _read(Path(config).read_text(encoding="utf-8") if Path(config).is_file() else config)
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            yield found


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None  # as of a date that is none


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return a == b or (_named(a) is not None and _named(a) is _named(b))
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _named(name: str) -> Any:
    """The class of this name, which may have several; None where its module is not imported (nothing is for this)."""
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module), own, None)
    return found if isinstance(found, type) else None
