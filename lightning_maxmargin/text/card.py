"""The model card of a run: ``model/README.md``, from the files of the run alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import yaml

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.encoders import DEFAULT

#: What the packaged encoder is on the hub.
PACKAGED = "sentence-transformers/all-MiniLM-L6-v2"
MEASURED = {
    "test/accuracy": ("accuracy", "share of test documents whose label is right"),
    "rationale/auprc": ("AUPRC", "agreement of the word weights with what people marked, mean over documents"),
    "rationale/r_precision": ("R-precision", "share marked among as many of the heaviest words as are marked"),
    "rationale/token_f1": ("token F1", "of as many of the heaviest words as are marked"),
    "rationale/iou_f1": ("IOU F1", "of spans of these words that overlap a marked one by half"),
    "margin/median_lead": ("median lead", "(best score - second) / norm of the attention, over training documents"),
    "attention/entropy": ("entropy", "of the attention in nats, mean over training documents"),
}
#: Options of the run that a reader wants; those that are off are left out.
OPTIONS = ("parametrization", "query", "rank", "per_class", "token_scale", "lr", "attention_decay", "head_decay",
           "label_smoothing", "class_weights", "dropout", "finetune_layers", "lora_rank")  # fmt: skip
CARD = """
# {title}

Classifies a text as {labels}, and says which {units} decided: `logits = V X' softmax(X p)` over the hidden states X of
{encoder} (layer {layers}). Trained with [lightning-maxmargin](https://pypi.org/project/lightning-maxmargin).

## Measured

{measured}

## Use

```python
from lightning_maxmargin import TextSelector

selector = TextSelector.from_pretrained("{folder}")
reading = selector("A text of your own.")
print(reading)                # the label, its probability and the heaviest words
print(reading.lead, reading.entropy, [(word.text, word.weight) for word in reading.words])
```
{pipeline}
## Data and training

{training}

## Limits

- The weights say what this model read, not why a person would choose the label. Words that people mark are among the
  heaviest as often as AUPRC says{auprc}, and a hidden state has read the words around it, too.
- A low probability says that the label may be wrong, a small lead that a small change of the text may select another
  word, a large entropy that no few words decided. None of them says that a text is of another kind than the training
  documents.
- Texts are cut at {max_pieces} word pieces; what comes after is not read.
- Labels, language and wrong cues are those of the training documents. It has been measured on nothing else.
"""


def write_card(run_dir: str | Path) -> Path:
    """Writes ``model/README.md`` of a run directory, anew where there is one, and returns its path.

    It reads ``model/config.json`` and, as far as they are there, ``config.yaml``, ``summary.json``, ``corpus.json`` and
    ``test.json``: at the end of fit there is no test yet. Paths of this machine are not written.

    Raises:
        InputError: there is no model, or one of the files is damaged.
    """
    from huggingface_hub import ModelCard

    run_dir = Path(run_dir)
    config = _json(run_dir / "model" / "config.json")
    if config is None:
        raise InputError(f"card: {run_dir} holds no model; give the directory of a run on text")
    files = {name: _json(run_dir / f"{name}.json") or {} for name in ("summary", "corpus", "test")}
    given = _yaml(run_dir / "config.yaml")
    card = ModelCard(f"---\n{_data(config, given, files).to_yaml()}\n---\n{_text(run_dir, config, given, files)}")
    path = run_dir / "model" / "README.md"
    write_text(path, str(card), errors="replace")
    return path


def _data(config: dict[str, Any], given: dict[str, Any], files: dict[str, dict[str, Any]]) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    encoder = _encoder(given)
    base = PACKAGED if encoder == DEFAULT else encoder if encoder and not _is_path(encoder) else None
    name = str(files["summary"].get("name") or "text")
    results = [
        EvalResult("text-classification", "custom", "test documents", shown, value, task_name="Text classification")
        for key, (shown, _) in MEASURED.items()
        if isinstance(value := _value(files, key), float) and key.startswith(("test/", "rationale/"))
    ]
    return ModelCardData(
        library_name="transformers", pipeline_tag="text-classification", base_model=base,
        tags=["lightning-maxmargin", "token-selection", "rationales"],
        model_name=name if results else None, eval_results=results or None,
    )  # fmt: skip


def _text(run_dir: Path, config: dict[str, Any], given: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    names = [str(x) for x in config["id2label"].values()]
    labels = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    key, value = config["key_layer"], config["value_layer"]
    encoder = _encoder(given)
    auprc = _value(files, "rationale/auprc")
    pieces = config["units"] == "pieces"
    return CARD.format(
        title=_inline(str(files["summary"].get("name") or "Text selector")),
        labels=_inline(labels),
        units="words" if pieces else config["units"],
        encoder=_inline(PurePath(encoder).name if _is_path(encoder) else encoder) or "a pretrained encoder",
        layers=key if key == value else f"{key} is attended to, {value} is read",
        measured=_measured(files),
        folder="model",
        pipeline=PIPELINE if pieces else "",
        training=_training(given, files),
        auprc=f" ({auprc:.2f} here)" if auprc is not None else " (not measured here: no test document was marked)",
        max_pieces=config["max_pieces"],
    ).lstrip()


PIPELINE = """
As a pipeline of transformers, for the label alone:

```python
import lightning_maxmargin.text.model  # tells transformers of this kind of model
from transformers import pipeline

print(pipeline("text-classification", "model")("A text of your own."))
```
"""


def _measured(files: dict[str, dict[str, Any]]) -> str:
    rows = [(shown, value, meaning) for key, (shown, meaning) in MEASURED.items()
            if (value := _value(files, key)) is not None]  # fmt: skip
    corpus = files["corpus"]
    accuracy = (corpus.get("accuracy") or {}).get("val")
    if accuracy is not None:
        rows.append(("validation accuracy", accuracy, "of the documents that the run watched"))
    pool = corpus.get("mean_pool")
    if pool:
        rows.append(("mean pooling", pool["accuracy"]["val"], "validation accuracy without attention, for comparison"))
    if not rows:
        return "Nothing yet."
    documents = files["test"].get("documents")
    head = f"On {documents:,} test documents:\n\n" if documents else ""
    lines = [f"| {shown} | {value:.3f} | {meaning} |" for shown, value, meaning in rows]
    return head + "\n".join(["| measure | value | meaning |", "|---|---|---|", *lines])


def _training(given: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    return "\n".join(f"- {line}" for line in _training_lines(given, files)) or "- Not recorded."


def _training_lines(given: dict[str, Any], files: dict[str, dict[str, Any]]) -> Iterator[str]:
    data, model = _arguments(given, "data"), _arguments(given, "model")
    documents = files["corpus"].get("documents") or {}
    if data.get("train"):
        name = PurePath(str(data["train"])).name if _is_path(str(data["train"])) else str(data["train"])
        yield f"data: {_inline(name)}" + (f", {documents['train']:,} documents" if documents else "")
    classes = files["corpus"].get("classes") or []
    if classes:
        counts = ", ".join(f"{_inline(str(row['label']))} {row['train']:,}" for row in classes[:12])
        yield f"training documents by label: {counts}" + (" and more" if len(classes) > 12 else "")
    options = [f"{name} {model[name]}" for name in OPTIONS if model.get(name) not in (None, False, 0, 0.0, "none")]
    if options:
        yield "options: " + ", ".join(options)
    steps = files["summary"].get("steps")
    if steps:
        yield f"{steps:,} steps"
    for finding in files["corpus"].get("findings") or []:
        yield f"found: {_inline(finding['sentence'])}"


def _value(files: dict[str, dict[str, Any]], key: str) -> float | None:
    if key == "test/accuracy" and files["test"].get("documents"):
        confusion = files["test"]["confusion"]
        return float(sum(row[k] for k, row in enumerate(confusion)) / files["test"]["documents"])
    value = files["summary"].get(key)
    return float(value) if isinstance(value, int | float) else None


def _encoder(given: dict[str, Any]) -> str:
    return str(_arguments(given, "data").get("encoder") or "")


def _is_path(name: str) -> bool:
    """Whether a name of data or encoder is one of this machine: a hub's has one slash at most, and no ending."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or Path(name).exists()


def _arguments(given: dict[str, Any], part: str) -> dict[str, Any]:
    found = given.get(part)
    arguments = found.get("init_args", found) if isinstance(found, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _inline(text: str) -> str:
    """A text of others in one line of Markdown, where it is only text."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in line)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"card: {path} is damaged: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # also of a date that is none
        raise InputError(f"card: {path} is damaged: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}
