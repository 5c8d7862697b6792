"""What is wrong with a run on text, and which option to change: each finding is one sentence.

Four runs that show one each, and their cures, are ``configs/text/symptoms``; docs/text.md has their numbers.

| symptom | how it is seen | what to change |
|---|---|---|
| ``stuck`` | mean pooling is better; one word or place is heaviest in half of the documents | smaller ``model.lr`` |
| ``stuck`` | mean pooling is better; attention is on one word each, which does not fit | smaller ``model.lr`` |
| ``too long`` | mean pooling is better; training documents are fitted far better | fewer ``trainer.max_epochs`` |
| ``too short`` | mean pooling is better; fewer than 100 steps | more ``trainer.max_epochs`` |
| ``too much decay`` | mean pooling is better; training documents are not fitted either | less decay of both |
| ``one word decides`` | a word carries more than half of the attention in a quarter of the documents | the texts |
| ``truncated`` | a tenth of the documents are cut | ``data.max_length``, or an encoder of longer texts |
| ``imbalance`` | a label is five times rarer than another, and found less often | ``model.class_weights``: balanced |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Share of documents in which one word or place is heaviest that counts as stuck.
STUCK = 0.5
#: Mean weight of the heaviest word from which a selection is concentrated.
CONCENTRATED = 0.5
#: Words of the median document below which a place says nothing.
SHORT = 5
#: Share of documents in which one word may carry more than half.
DECIDES = 0.25
#: How much better training documents may be fitted than validation.
OVERFIT = 0.1
TRUNCATED = 0.1
IMBALANCE = 5.0
FEW_STEPS = 100
#: Of config text/finetune, which a run with worse ones comes back to; tokens of 3 to 12 gave equal models.
LR, TOKEN_SCALE, LONGEST_TOKEN, ATTENTION_DECAY, HEAD_DECAY, EPOCHS = 1e-2, 8.0, 12.0, 2.0, 0.3, 10

Finding = dict[str, Any]


def find_symptoms(measured: Mapping[str, Any], options: Mapping[str, Any]) -> list[Finding]:
    """Findings: ``symptom``, ``sentence``, ``option`` and ``value`` (None where no number cures it).

    Args:
        measured: as of :func:`~lightning_maxmargin.text.corpus.measure_corpus`.
        options: of the run, as far as they are known: lr, token_scale, attention_decay, head_decay, class_weights,
            max_epochs, steps, max_length, and longest (pieces that the encoder takes).
    """
    behind = _behind(measured, options)
    # Where the attention is stuck the word that decides is the symptom, no cue.
    word = None if behind is not None and behind["symptom"] == "stuck" else _word(measured)
    found = [behind, word, _truncated(measured, options), _imbalance(measured, options)]
    return [finding for finding in found if finding is not None]


def is_behind(mean_pool: Mapping[str, Any] | None) -> bool:
    """Whether mean pooling is better on validation by more than one standard error of the paired difference.

    Example:
        >>> is_behind({"only_mean_pool": 12, "only_model": 2}), is_behind({"only_mean_pool": 6, "only_model": 4})
        (True, False)
    """
    if mean_pool is None:
        return False
    pool, model = mean_pool["only_mean_pool"], mean_pool["only_model"]
    return bool(pool - model > (pool + model) ** 0.5)


def _finding(symptom: str, sentence: str, option: str, value: Any) -> Finding:
    return {"symptom": symptom, "sentence": sentence, "option": option, "value": value}


def _behind(measured: Mapping[str, Any], options: Mapping[str, Any]) -> Finding | None:
    pool = measured["mean_pool"]
    # Labels that count alike cost accuracy where one is rare, which mean pooling, where each document counts, keeps.
    if not is_behind(pool) or options.get("class_weights") == "balanced":
        return None
    train, val = measured["accuracy"]["train"], measured["accuracy"]["val"]
    below = f"validation accuracy {val:.3f} is below the {pool['accuracy']['val']:.3f} of mean pooling"
    fitted = train > pool["accuracy"]["train"]
    where = _stuck(measured["selection"], fitted)
    if where:
        option, value = _slower(options)
        return _finding(
            "stuck", f"{where}, and {below}: the attention is stuck at a local optimum; learn more slowly, with "
            f"--{option} {value:g}, or in another order, with --data.seed 1.", option, value,
        )  # fmt: skip
    epochs, steps = int(options.get("max_epochs") or EPOCHS), options.get("steps")
    if fitted and train - val > OVERFIT:
        fewer = max(1, epochs // 2)
        decay = _known(options.get("attention_decay"), ATTENTION_DECAY)
        more = f", or hold the weights with --model.attention_decay {max(ATTENTION_DECAY, 4 * decay):g}"
        return _finding(
            "too long", f"Training documents are classified with {train:.3f}, but {below}: the run was too long; stop "
            f"it earlier, with --trainer.max_epochs {fewer}{more}.", "trainer.max_epochs", fewer,
        )  # fmt: skip
    if steps is not None and steps < FEW_STEPS:
        longer = epochs * -(-3 * FEW_STEPS // max(steps, 1))
        return _finding(
            "too short", f"After {steps:,} steps {below}: train for longer, with --trainer.max_epochs {longer}.",
            "trainer.max_epochs", longer,
        )  # fmt: skip
    decay = _less(options.get("attention_decay"), ATTENTION_DECAY)
    head = _less(options.get("head_decay"), HEAD_DECAY)
    return _finding(
        "too much decay", f"Training documents are classified with {train:.3f} only, and {below}: decay holds the "
        f"weights too small; try --model.attention_decay {decay:g} --model.head_decay {head:g}.",
        "model.attention_decay", decay,
    )  # fmt: skip


def _stuck(selection: Mapping[str, Any] | None, fitted: bool) -> str:
    if selection is None or selection["mass"] < CONCENTRATED:
        return ""
    if selection["word_share"] >= STUCK:
        return f"In {selection['word_share']:.0%} of the documents the heaviest word is {selection['word']!r}"
    if selection["position_share"] >= STUCK and selection["words"] >= SHORT:
        return f"In {selection['position_share']:.0%} of the documents the heaviest word is the {place(selection)}"
    if not fitted:
        return f"One word of each document has {selection['mass']:.0%} of the attention, though it does not classify"
    return ""


def _slower(options: Mapping[str, Any]) -> tuple[str, float]:
    """What makes p learn more slowly: the length of a token where it is out of range, else the rate."""
    if _known(options.get("token_scale"), TOKEN_SCALE) > LONGEST_TOKEN:
        return "model.token_scale", TOKEN_SCALE
    lr = _known(options.get("lr"), LR)
    return "model.lr", LR if lr > 5 * LR else float(f"{lr / 5:.2g}")


def _known(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _less(now: Any, default: float) -> float:
    """A decay that is above the shipped one comes back to it, another to a quarter; to two digits."""
    return float(f"{min(_known(now, default) / 4, default):.2g}")


def place(selection: Mapping[str, Any]) -> str:
    """A position in words.

    Example:
        >>> place({"position": 0}), place({"position": -2})
        ('first one', 'last but 1')
    """
    at = selection["position"]
    if at >= 0:
        return "first one" if at == 0 else f"one at place {at + 1}"
    return "last one" if at == -1 else f"last but {-at - 1}"


def _word(measured: Mapping[str, Any]) -> Finding | None:
    selection = measured["selection"]
    if selection is None:
        return None
    many = [w for w in selection["deciding"] if w["share"] >= DECIDES]
    if not many:
        return None
    said = " and ".join(f"{w['word']!r} in {w['share']:.0%}" for w in many[:3])
    return _finding(
        "one word decides", f"One word carries more than half of the attention in many documents ({said}): if it is "
        "not what the labels mean, it is a spurious cue; take it out of the texts of data.train and see whether the "
        "accuracy stands.", "data.train", None,
    )  # fmt: skip


def _truncated(measured: Mapping[str, Any], options: Mapping[str, Any]) -> Finding | None:
    cut, documents = sum(measured["truncated"].values()), sum(measured["documents"].values())
    if not documents or cut / documents < TRUNCATED:
        return None
    length, longest = options.get("max_length"), options.get("longest")
    at = f" at {length} word pieces" if length else ""
    said = f"{cut / documents:.0%} of the documents are cut{at}, and what comes after is not read"
    if length and longest and length < longest:
        return _finding(
            "truncated", f"{said}; give them more room, with --data.max_length {longest}.", "data.max_length", longest
        )
    return _finding(
        "truncated", f"{said}; this encoder takes no more, so cut the documents into parts, or name one of longer "
        "texts with --data.encoder.", "data.encoder", None,
    )  # fmt: skip


def _imbalance(measured: Mapping[str, Any], options: Mapping[str, Any]) -> Finding | None:
    classes = [row for row in measured["classes"] if row["train"]]
    if len(classes) < 2 or options.get("class_weights") == "balanced":
        return None
    rare, frequent = (choose(classes, key=lambda row: row["train"]) for choose in (min, max))
    if frequent["train"] < IMBALANCE * rare["train"]:
        return None
    if rare["recall"] is not None and rare["recall"] >= (measured["accuracy"].get("val") or 0.0):
        return None
    recall = "" if rare["recall"] is None else f", and {rare['recall']:.0%} of its validation documents are found"
    return _finding(
        "imbalance", f"The label {rare['label']!r} has {rare['train']:,} training documents against "
        f"{frequent['train']:,} of {frequent['label']!r}{recall}; let each label count alike, with "
        "--model.class_weights balanced.", "model.class_weights", "balanced",
    )  # fmt: skip
