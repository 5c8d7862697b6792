"""Drawn input for solvers, masks, texts, configs and checkpoints: a right answer or one line, never a wrong answer."""

from __future__ import annotations

import contextlib
import functools
import io
import random
import re
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_maxmargin import solve_att_svm, solve_joint_svm, solve_label_svm
from lightning_maxmargin.cli import main
from lightning_maxmargin.core import LOSSES, Sequences, exact_directions
from lightning_maxmargin.core.masks import as_mask, hidden_by
from lightning_maxmargin.core.sequences import check_sequences
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import CheckedCheckpointIO, verify_checkpoint
from tests.conftest import ROOT
from tests.reliability.corruption import BYTES, same, scratch
from tests.reliability.scenario import Trial

#: What an answer may miss, as docs/method.md says, and what the last of float64's digits may add to a gap.
ROWS, GAP, FARKAS = 1e-7, 1e-8, 1e-12
DIGITS = 1e-12
Row = list[Fraction]
Rows = dict[tuple[int, ...], Row]

# --- solvers ----------------------------------------------------------------------------------------------------------


def drawn_numbers(rng: random.Random, *shape: int) -> torch.Tensor:
    """Random, whole, tied, of lower rank, or with entries of very different size."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    how = rng.choice(("plain", "whole", "signs", "zero column", "sizes", "equal"))
    if how == "whole":
        x = x.round()
    elif how == "signs":
        x = x.sign()
    elif how == "zero column":
        x[..., 0] = 0
    elif how == "sizes":
        x = x * 10.0 ** torch.randint(-6, 7, x.shape[:1], generator=generator).view(-1, *[1] * (x.ndim - 1))
    elif how == "equal":
        x[:] = x[:1].clone()
    return x * 10.0 ** rng.choice((0, 0, 0, 0, -12, -6, 6, 12))


def drawn_keys(rng: random.Random, n: int, T: int, d: int) -> torch.Tensor:
    """Tokens, some of them twice in a sequence, some sequences twice."""
    keys = drawn_numbers(rng, n, T, d)
    if rng.random() < 0.3:
        keys[:, rng.randrange(T)] = keys[:, rng.randrange(T)].clone()
    if rng.random() < 0.2:
        keys[rng.randrange(n)] = keys[rng.randrange(n)].clone()
    return keys


def spoiled(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """With NaN or Inf somewhere."""
    y = x.clone()
    y.view(-1)[rng.randrange(y.numel())] = rng.choice((torch.nan, torch.inf, -torch.inf))
    return y


def in_kind(x: torch.Tensor, kind: str) -> Any:
    return x.numpy() if kind == "numpy" else x.to(getattr(torch, kind))


KINDS = ("float64", "float64", "float32", "float16", "bfloat16", "numpy")


def fractions(x: Any) -> Any:
    return [fractions(y) for y in x] if isinstance(x, list) else Fraction(x)


def dot(a: Row, b: Row) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def attention_rows(keys: torch.Tensor, alpha: torch.Tensor, live: torch.Tensor, z: torch.Tensor | None) -> Rows:
    """Rows (k_alpha - k_t) [z'] by place, exact; tokens that are the selected one to 8 roundings ask for nothing."""
    k, rows = fractions(keys.tolist()), Rows()
    chosen = keys[torch.arange(len(keys)), alpha][:, None]
    near = (keys - chosen).norm(dim=2) <= 8 * 2**-52 * torch.maximum(keys.norm(dim=2), chosen.norm(dim=2))
    asked = live & ~near
    for i, t in asked.nonzero().tolist():
        delta = [a - b for a, b in zip(k[i][alpha[i]], k[i][t], strict=True)]
        rows[i, t] = delta if z is None else [a * b for a in delta for b in fractions(z[i].tolist())]
    return rows


def label_rows(x: torch.Tensor, y: torch.Tensor, classes: int | None) -> Rows:
    """Rows y_i x_i, or of class labels (e_y - e_k) x_i'."""
    exact = fractions(x.tolist())
    if classes is None:
        return {(i,): [int(y[i]) * a for a in row] for i, row in enumerate(exact)}
    zero, rows = [Fraction(0)] * x.shape[1], Rows()
    for i, row in enumerate(exact):
        for k in range(classes):
            if k != int(y[i]):
                parts = [row if c == int(y[i]) else [-a for a in row] if c == k else zero for c in range(classes)]
                rows[i, k] = [a for part in parts for a in part]
    return rows


def wrong_answer(solution: Any, rows: Rows, rhs: torch.Tensor | None = None) -> str | None:
    """What is shown of an answer and does not hold, in rational arithmetic."""
    if not (solution.direction.isfinite().all() and solution.dual.isfinite().all()):
        return "silent: a number that is not finite"
    b = {at: Fraction(1) if rhs is None else Fraction(float(rhs[at])) for at in rows}
    dual = {at: Fraction(float(solution.dual[at])) for at in rows}
    off = {tuple(at) for at in solution.dual.nonzero().tolist()} - {at for at, x in dual.items() if x}
    if solution.status != "unverified" and (off or any(x < 0 for x in dual.values())):
        return f"silent: {solution.status} by multipliers that are negative or of no row"
    combined = [sum((dual[at] * row[j] for at, row in rows.items()), Fraction(0)) for j in range(_dim(rows))]
    value = sum((dual[at] * b[at] for at in rows), Fraction(0))
    if solution.status == "infeasible":
        weight = sum(float(dual[at]) * _norm(row) for at, row in rows.items())
        shown = value > 0 and _norm(combined) <= FARKAS * weight * (1 + DIGITS)
        return None if shown else "silent: infeasible by a vector that shows nothing"
    if solution.status != "certified" or not any(x > 0 for x in b.values()):
        return None
    w = fractions(solution.direction.flatten().tolist())
    margins = {at: dot(row, w) for at, row in rows.items()}
    smallest = min(margins[at] / b[at] for at in rows if b[at] > 0)
    sizes = {at: max(_norm(row) * _norm(w), 1e-300) for at, row in rows.items() if b[at] == 0}
    missed = max((-float(margins[at]) / size for at, size in sizes.items()), default=0.0)
    if smallest < 1 - ROWS or missed > ROWS:
        return f"silent: certified, and a row is missed ({float(smallest)}, {missed})"
    squares = dot(combined, combined) * dot(w, w)
    gap = 1.0 if squares == 0 else float(1 - value**2 * smallest**2 / squares)
    return None if abs(gap) <= GAP + DIGITS else f"silent: certified with a gap of {gap}"


def _dim(rows: Rows) -> int:
    return len(next(iter(rows.values()), []))


def _norm(row: Row) -> float:
    """Without over- or underflow of squares."""
    top = max(map(abs, row), default=Fraction(0))
    return float(top) * float(dot([x / top for x in row], [x / top for x in row])) ** 0.5 if top else 0.0


def refused_or(solve: Callable[[], Any], must: bool) -> Any:
    """The answer, None where it was refused in a line; a string tells what is wrong with that."""
    try:
        found = solve()
    except ValueError as error:
        return f"refused in several lines: {error}" if "\n" in str(error) else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "silent: NaN or Inf was answered" if must else found


def solvers(rng: random.Random) -> str | None:
    return rng.choice((attention_svm, attention_svm, label_svm, joint_svm))(rng)


def _attention_input(rng: random.Random) -> Any:
    n, T, d = rng.choice((1, 1, 2, 3, 5)), rng.choice((1, 2, 2, 3, 5)), rng.choice((1, 2, 2, 3, 4))
    keys = drawn_keys(rng, n, T, d)
    live = torch.rand(n, T, generator=torch.Generator().manual_seed(rng.randrange(2**31))) < 0.8
    live[:, rng.randrange(T)] = True
    alpha = torch.tensor([rng.choice(row.nonzero().flatten().tolist()) for row in live])
    queries = drawn_numbers(rng, n, rng.choice((1, 2))) if rng.random() < 0.3 else None
    return keys, alpha, live, queries


def _mask_of(live: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    return None if bool(live.all()) and rng.random() < 0.5 else live


def attention_svm(rng: random.Random) -> str | None:
    keys, alpha, live, queries = _attention_input(rng)
    kind = rng.choice(KINDS)
    bad = rng.random() < 0.1
    given = in_kind(spoiled(keys, rng) if bad else keys, kind)
    rhs = (
        torch.tensor([[rng.choice((0.0, 1.0, 1.0, 2.5)) for _ in row] for row in live]) if rng.random() < 0.2 else None
    )
    exact = torch.as_tensor(given).double()
    mask = _mask_of(live, rng)
    found = refused_or(
        lambda: solve_att_svm(given, alpha, queries=queries, mask=mask, rhs=rhs), not bool(exact[live].isfinite().all())
    )
    if found is None or isinstance(found, str):
        return found
    return wrong_answer(found, attention_rows(exact.nan_to_num(), alpha, live, queries), rhs)


def label_svm(rng: random.Random) -> str | None:
    n, d = rng.choice((1, 2, 3, 6)), rng.choice((1, 2, 3))
    kind, bad = rng.choice(KINDS), rng.random() < 0.1
    x = drawn_numbers(rng, n, d)
    given = in_kind(spoiled(x, rng) if bad else x, kind)
    classes = rng.choice((None, None, 3))
    one = rng.random() < 0.2
    labels = torch.tensor([(1 if one else rng.choice((-1, 1))) if classes is None else (0 if one else rng.randrange(3))
                           for _ in range(n)])  # fmt: skip
    exact = torch.as_tensor(given).double()
    found = refused_or(lambda: solve_label_svm(given, labels, num_classes=classes), not bool(exact.isfinite().all()))
    if found is None or isinstance(found, str):
        return found
    return wrong_answer(found, label_rows(exact, labels, classes))


def joint_svm(rng: random.Random) -> str | None:
    keys, alpha, live, queries = _attention_input(rng)
    given = in_kind(keys, rng.choice(KINDS))
    labels = torch.tensor([rng.choice((-1, 1)) for _ in alpha])
    limit = rng.choice(("strict", "relaxed", "rate_coupled"))
    ratio = 10.0 ** rng.uniform(-3, 3) if limit == "rate_coupled" else None
    exact = torch.as_tensor(given).double()
    found = refused_or(
        lambda: solve_joint_svm(
            given, given, labels, alpha, limit=limit, norm_ratio=ratio, queries=queries, mask=_mask_of(live, rng)
        ),
        not bool(exact[live].isfinite().all()),
    )
    if found is None or isinstance(found, str):
        return found
    head = wrong_answer(found.head, label_rows(exact[torch.arange(len(alpha)), alpha], labels, None))
    if head or found.rhs is None:
        return head
    return wrong_answer(found.attention, attention_rows(exact.nan_to_num(), alpha, live, queries), found.rhs)


# --- masks ------------------------------------------------------------------------------------------------------------


def masks(rng: random.Random) -> str | None:
    """True at tokens, written in some way: read with that meaning, or refused."""
    n, T = rng.randint(1, 4), rng.randint(1, 5)
    truth = torch.tensor([[rng.random() < rng.choice((0.7, 0.1)) for _ in range(T)] for _ in range(n)])
    return rng.choice((_written_as_truths, _added_to_scores, _of_sequences))(truth, rng)


def _written_as_truths(truth: torch.Tensor, rng: random.Random) -> str | None:
    kind = rng.choice((torch.bool, torch.uint8, torch.int64, torch.int8, torch.float32, torch.float16, torch.bfloat16))
    return None if torch.equal(as_mask(truth.to(kind), "mask"), truth) else f"silent: {kind} is read as another mask"


def _added_to_scores(truth: torch.Tensor, rng: random.Random) -> str | None:
    kind = rng.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64))
    by = rng.choice((-torch.inf, -1e4, torch.finfo(kind).min, -1.0, -50.0, torch.nan, 3.0))
    added = torch.zeros(truth.shape, dtype=kind).masked_fill(~truth, by)
    if bool(truth.all()):
        # All zeros: as truths they say that all is padding, which whoever reads sequences refuses.
        return None if torch.equal(hidden_by(added, "mask"), ~truth) else "silent: no padding is read as padding"
    try:
        as_mask(added, "mask")
    except InputError:
        pass
    else:
        return f"silent: {by} at padding is read as tokens"
    try:
        hidden = hidden_by(added, "mask")
    except InputError as error:
        return None if by in (-1.0, -50.0, 3.0) or by != by else f"refused: {error}"
    return None if torch.equal(hidden, ~truth) else f"silent: {by} at padding is read as another mask"


def _of_sequences(truth: torch.Tensor, rng: random.Random) -> str | None:
    """The same directions whatever stands on padding; a sequence of padding alone is refused."""
    n, T = truth.shape
    keys = drawn_numbers(rng, n, T, 2)
    filled = keys.masked_fill(~truth[..., None], rng.choice((0.0, 1e3, torch.nan, torch.inf)))
    labels = torch.tensor([rng.choice((-1.0, 1.0)) for _ in range(n)], dtype=torch.float64)
    kind = rng.choice((torch.bool, torch.bool, torch.int64, torch.float32))
    try:
        data = check_sequences(Sequences(filled, labels, mask=truth.to(kind)))
    except InputError:
        return None if kind != torch.bool or not truth.any(1).all() else "a sound mask was refused"
    if kind != torch.bool or not truth.any(1).all():
        return "silent: a mask that is none was taken"
    p, v = (torch.tensor([rng.gauss(0, 1), rng.gauss(0, 1)], dtype=torch.float64) for _ in range(2))
    plain = Sequences(keys.masked_fill(~truth[..., None], 0.0), labels, mask=truth)
    a, b = (exact_directions(x, x.keys @ p, v, LOSSES["logistic"]) for x in (data, plain))  # type: ignore[arg-type]
    scale = max(1.0, float(b.attention.abs().max()))
    finite = bool(a.attention.isfinite().all() and a.head.isfinite().all())
    close = float((a.attention - b.attention).abs().max()) <= 1e-12 * scale
    return None if finite and close else "silent: padding changes a direction"


# --- texts ------------------------------------------------------------------------------------------------------------

PARTS = (
    "good", "bad", "film", "a", " ", " ", "\n\n", "\t", "\u00a0", "\u3000", "\u2028", ".", "!?", "[SEP]", "[MASK]",
    "\0", "😀", "👩‍👩‍👧‍👦", "🇫🇷", "שלום", "مرحبا", "\u202e", "\u200b", "\ufeff", "e\u0301", "a" + "\u0300" * 40,
    "\ud800", "\udfff", "ﬁ", "İ", "ß", "中文。", "日本語", "𝔘", "\x1b", "\ufffd", "\U0010ffff", "<s>", "%s", "{}",
)  # fmt: skip

NAMED = re.compile(r"\[(SEP|MASK)\]")


def drawn_text(rng: random.Random) -> str:
    long = rng.random() < 0.02
    text = "".join(rng.choices(PARTS, k=rng.choice((0, 1, 2, 5, 30, 200))))
    return (text or "a ") * (100_000 // max(2, len(text))) if long else text


@functools.cache
def selector(units: str) -> Any:
    """On a network with random weights."""
    from transformers import BertConfig

    from lightning_maxmargin.text.data import TextSpec
    from lightning_maxmargin.text.pretrained import pretrained_encoder
    from lightning_maxmargin.text.saving import build_model
    from lightning_maxmargin.text.selector import TextSelector
    from tests.text.words import SPECIAL, WORDS, save_encoder

    shape = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS.split()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    encoder = pretrained_encoder(str(save_encoder(scratch(), shape)))
    model = build_model(TextSpec(encoder.name, 1, 1, units, 64), encoder, ["bad", "good"], {}).eval()
    with torch.no_grad():
        for parameter in model.selectors.parameters():
            parameter.normal_(std=0.3)
    return TextSelector(model, encoder.tokenizer)


def texts(rng: random.Random) -> str | None:
    given = [drawn_text(rng) for _ in range(rng.randint(1, 3))]
    for text, reading in zip(given, selector(rng.choice(("pieces", "words", "sentences")))(given), strict=True):
        wrong = _wrong_reading(text, reading)
        if wrong:
            return f"{wrong} of {text[:60]!a}"
    return None


def _wrong_reading(text: str, reading: Any) -> str | None:
    weights = [word.weight for word in reading.words]
    numbers = [*weights, *(word.evidence for word in reading.words), *reading.probabilities.values(), reading.entropy]
    if not np.isfinite([*numbers, reading.lead or 0.0]).all():
        return "silent: a number that is not finite"
    # Of special tokens alone none may be selected, and all weights are 0.
    whole = 1 if NAMED.sub("", text).strip() else 0
    if abs(sum(reading.probabilities.values()) - 1) > 1e-5 or (weights and abs(sum(weights) - whole) > 1e-4):
        return f"silent: shares that do not sum to 1 ({sum(weights)})"
    ends = [0]
    for word in reading.words:
        inside = ends[-1] <= word.start < word.end <= len(text)
        if not inside or _seen(text[word.start : word.end]) != word.text:
            return f"silent: a span outside of its text, or of other characters ({word.start}, {word.end})"
        ends.append(word.end)
    return None


def _seen(text: str) -> str:
    """Half a pair of UTF-16 is no character, and is read as one that is unknown."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


# --- configs ----------------------------------------------------------------------------------------------------------

SHIPPED = ("joint/tight", "joint/random", "joint/mlp", "attention/losses", "text/planted", "ensemble/random")
VALUES = (
    "", "null", "~", "-1", "1e999", ".nan", "[1, [2]]", "{a: {b: c}}", "'", "&a [*a]", "!!python/object:os.system {}",
    "os.system", "torch.optim.Adam", "torch.nn.Linear", "lightning_maxmargin.RandomData", "no.such.Class", "\t",
    "2" * 400, "true", "NormalizedGD", "{class_path: torch.optim.SGD, init_args: {lr: x}}", "é", "\x00", "- -", ": :",
)  # fmt: skip


def changed_config(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        key, colon, _rest = lines[at].partition(":")
        how = rng.choice(("value", "value", "value", "key", "gone", "twice", "indent", "characters", "cut"))
        if how == "value" and colon:
            lines[at] = f"{key}: {rng.choice(VALUES)}"
        elif how == "key" and colon:
            lines[at] = lines[at].replace(key, key + rng.choice(("x", " ", "'", ".a", "-")), 1)
        elif how == "gone":
            lines[at] = ""
        elif how == "twice":
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif how == "indent":
            lines[at] = rng.choice((" ", "  ", "\t")) + lines[at]
        elif how == "characters" and lines[at]:
            i = rng.randrange(len(lines[at]))
            lines[at] = lines[at][:i] + rng.choice("{}[]:,&*!|>'\"%@`#-?\x07é") + lines[at][i + rng.randint(0, 1) :]
        elif how == "cut":
            del lines[max(1, at) :]
    return "\n".join(lines) + "\n"


def configs(rng: random.Random) -> str | None:
    """A shipped config, changed: printed, or refused in a line."""
    text = changed_config((ROOT / "configs" / f"{rng.choice(SHIPPED)}.yaml").read_text(), rng)
    path = folder() / "changed.yaml"
    path.write_text(text, encoding="utf-8")
    err, before = io.StringIO(), sys.argv
    sys.argv = ["maxmargin"]
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(["fit", "--config", str(path), "--print_config"])
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]} of {text!a}"
    finally:
        sys.argv = before
    lines = err.getvalue().splitlines()
    told = [line for line in lines if line.startswith("maxmargin: error: ")]
    if status == 0 or (status == 2 and len(told) == 1 and len(lines) == 1):
        return None
    return f"status {status}, {lines} of {text!a}"


@functools.cache
def folder() -> Path:
    return scratch()


# --- checkpoints ------------------------------------------------------------------------------------------------------


@functools.cache
def checkpoint() -> tuple[bytes, dict[str, Any]]:
    """As a run saves it, and what it holds."""
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(30, 4, generator=generator), "v": torch.randn(7, generator=generator).double()}
    path = folder() / "sound.ckpt"
    CheckedCheckpointIO().save_checkpoint({"state_dict": weights, "global_step": 7, "epoch": 1}, path)
    return path.read_bytes(), verify_checkpoint(path)


def checkpoints(rng: random.Random) -> str | None:
    data, content = checkpoint()
    path, how = folder() / "damaged.ckpt", rng.choice(BYTES)
    path.write_bytes(how(bytearray(data), rng))
    try:
        found = verify_checkpoint(path)
    except InputError as error:
        return f"{how.__name__} is refused in several lines: {error}" if "\n" in str(error) else None
    return None if same(found, content) else f"silent: {how.__name__} is loaded"


# --- one case ---------------------------------------------------------------------------------------------------------

#: Each as often as it is quick: a config takes .3 s, all others some milliseconds.
OFTEN: dict[Trial, int] = {solvers: 45, masks: 20, texts: 15, configs: 5, checkpoints: 15}


def trial(rng: random.Random) -> str | None:
    """Draws a kind, and one case of it."""
    (kind,) = rng.choices(list(OFTEN), list(OFTEN.values()))
    try:
        wrong = kind(rng)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    return f"{getattr(kind, '__name__', kind)}: {wrong}" if wrong else None
