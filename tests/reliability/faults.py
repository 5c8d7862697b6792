"""Faults planted in a copy of the package, each of which a test that passes without it must fail."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

#: What a copy needs to run its tests.
PARTS = ("lightning_maxmargin", "tests", "configs", "pyproject.toml")
#: Of pytest: tests passed, tests failed. Anything else is neither.
PASSED, FAILED = 0, 1


class Fault(NamedTuple):
    """A fault: what stands once in a file of the package, what stands there instead, and the tests that must fail."""

    name: str
    file: str
    sound: str
    faulty: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "a rank's rows dropped", "svm/distributed.py",
        'joined((x for x in self.ask(*self.which, "evaluate", direction, k) if x is not None), k)',
        'joined((x for x in self.ask(*self.which, "evaluate", direction, k)[:1] if x is not None), k)',
        ("svm/test_distributed.py::test_one_processes_answers",),
    ),
    Fault(
        "the sign of y swapped in the gradient", "core/exact.py",
        "weights = data.labels[:, None] * c_sign", "weights = -data.labels[:, None] * c_sign",
        ("core/test_exact.py::test_true_gradient_equals_autograd",),
    ),
    Fault(
        "padding counted in softmax", "core/attention.py",
        "return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1) * mask",
        "return scores.softmax(1) * mask",
        ("core/test_attention.py::test_masked_softmax_is_softmax_of_the_real_tokens",),
    ),
    Fault(
        "padding counted in selection", "core/selection.py",
        "    return hide(scores, mask).argmax(1)", "    return scores.argmax(1)",
        ("core/test_attention.py::test_select_takes_the_first_of_equals_and_never_padding",),
    ),
    Fault(
        "mask inverted", "core/selection.py",
        "scores.masked_fill(~mask, -torch.inf)", "scores.masked_fill(mask, -torch.inf)",
        ("core/test_attention.py::test_select_takes_the_first_of_equals_and_never_padding",),
    ),
    Fault(
        "a cosine in float32", "metrics/direction.py",
        'x.detach().to("cpu", torch.float64).flatten()', 'x.detach().to("cpu", torch.float32).flatten()',
        ("metrics/test_direction.py::test_float32_inputs_are_measured_in_float64",
         "metrics/test_direction.py::test_angles_along_an_axis"),
    ),
    Fault(
        "a direction gap without its normalisation", "metrics/direction.py",
        "u, w = (unit(x.detach()", "u, w = ((x.detach()", ("metrics/test_direction.py::test_scale_and_sign",),
    ),
    Fault(
        "samples counted twice where processes are not equally many", "data/sampling.py",
        "batches = self._made([part[rank::world] for part in order.split(self.batch_size)[self._next :]])",
        "batches = self._made([torch.cat([part, part[: -len(part) % world]])[rank::world]\n"
        "                                  for part in order.split(self.batch_size)[self._next :]])",
        ("data/test_sampling.py::test_union_over_ranks_is_the_batch_of_one_process",
         "data/test_sampling.py::test_an_epoch_sees_every_sequence_once"),
    ),
    Fault(
        "a certificate that does not check its rows", "svm/certify.py",
        "return 0.0 if zero is None else missed_share(margins[zero], problem.row_norms[zero] * length)", "return 0.0",
        ("svm/test_one_certificate.py::test_a_row_with_right_hand_side_0_that_is_missed_is_not_certified",),
    ),
    Fault(
        "a certificate without its gap", "svm/certificate.py",
        "return (abs(gap) <= TOLERANCES.gap) & (violation <= TOLERANCES.violation) & sound",
        "return (abs(gap) < np.inf) & (violation <= TOLERANCES.violation) & sound",
        ("svm/test_one_certificate.py",),
    ),
    Fault(
        "a Farkas vector that is not checked", "svm/proofs.py",
        "proved = missed <= TOLERANCES.farkas and proves_infeasible(problem, ids, u)", "proved = True",
        ("svm/test_hard.py::test_certify_infeasible_refuses_a_feasible_set",),
    ),
    Fault(
        "the checksum beside a checkpoint not compared", "run/checkpoints.py",
        'if beside.read_text(errors="replace").strip() != checksum(path):', "if not beside.is_file():",
        ("reliability/test_last_checkpoint.py::test_the_newest_whole_one",),
    ),
    Fault(
        "the sum within a checkpoint not compared", "run/content.py",
        "if SUM in content and content[SUM] != content_sum(content):", "if SUM in content and not content[SUM]:",
        ("reliability/test_corruption.py::test_one_number_altered_is_seen_without_a_sum_beside",),
    ),
    Fault(
        "last.ckpt written in place", "run/checkpoints.py",
        "with whole(path, on_disk=True) as part:", "for part in (path,):",
        ("reliability/test_last_checkpoint.py::test_a_save_that_fails_halfway_leaves_the_one_before",),
    ),
    Fault(
        "a run that goes on with another word of the model", "run/resume.py",
        "    for name in said:", "    for name in ():",
        ("reliability/test_resume.py::test_a_config_that_says_otherwise_is_refused",),
    ),
    Fault(
        "a run that goes on with another rate, decay or batch than it says", "run/resume.py",
        'of_it = name == "model" or name.startswith("model.") or name in OF_THE_CHECKPOINT', 'of_it = name == "model"',
        ("reliability/test_resume.py::test_each_word_of_the_checkpoint_is_refused",),
    ),
    Fault(
        "weights of another dtype cast in silence", "run/content.py",
        "if weight.dtype != expected and mine.is_floating_point():", "if False:",
        ("reliability/test_checkpoints.py::test_weights_that_the_model_cannot_take_as_they_are",),
    ),
    Fault(
        "an optimizer's memory that overflows is saved", "callbacks/guard.py",
        "if isinstance(x, Tensor) and x.ndim and _can_be_told(x) and not _holds_finite(x):", "if False:",
        ("reliability/test_last_checkpoint.py::test_a_run_whose_state_is_ruined_ends_and_keeps_the_checkpoint_before",),
    ),
    Fault(
        "the guard against NaN off", "callbacks/guard.py",
        "return math.isfinite(x.sum()) or bool(x.isfinite().all())", "return True",
        ("callbacks/test_guard.py::test_nan_in_one_sample_stops_before_the_weights",),
    ),
    Fault(
        "a wrong derivative of a loss", "core/losses.py",
        'MarginLoss("logistic", lambda m: _softplus(-m), lambda m: -_softplus(m), _log_logistic)',
        'MarginLoss("logistic", lambda m: _softplus(-m), lambda m: -_softplus(-m), _log_logistic)',
        ("core/test_losses.py::test_slope_is_that_of_autograd",),
    ),
    Fault(
        "truncated texts not counted", "text/pretrained.py",
        "bool(code.overflowing)", "False", ("text/test_data.py::test_strange_texts_are_counted",),
    ),
    Fault(
        "special tokens selectable", "text/batches.py",
        'batch["mask"] = self._padded([~self.special[self.pieces.of(i)] for i in texts])',
        'batch["mask"] = self._padded([torch.ones_like(self.special[self.pieces.of(i)]) for i in texts])',
        ("text/test_data.py::test_a_batch_holds_what_attention_may_select",),
    ),
    Fault(
        "hidden states kept without the tokenizer in their key", "text/hidden.py",
        '    digest = hashlib.sha256(f"{encoder.identity} {HIDDEN_VERSION} {len(texts)}\\0".encode())\n'
        '    digest.update("\\0".join(texts).encode("utf-8", "surrogatepass"))\n'
        "    digest.update(pieces.ids.tobytes())\n",
        # The last part of the identity is the tokenizer's.
        "    digest = hashlib.sha256(encoder.identity.rpartition('-')[0].encode())\n"
        '    digest.update("\\0".join(texts).encode("utf-8", "surrogatepass"))\n',
        ("text/test_hidden.py::test_it_is_keyed_by_all_it_depends_on",),
    ),
    Fault(
        "hidden states kept without the length in their key", "text/hidden.py",
        "    digest.update(pieces.ids.tobytes())\n    digest.update(pieces.starts.tobytes())\n", "",
        ("text/test_hidden.py::test_it_is_keyed_by_all_it_depends_on",),
    ),
    Fault(
        "spans of words off by one", "text/units.py",
        "[match.span() for match in WORD.finditer(text)]",
        "[(match.start() + 1, match.end()) for match in WORD.finditer(text)]",
        ("text/test_units.py::test_words_partition_the_text",),
    ),
    Fault(
        "the seed of data ignored", "data/random.py",
        "torch.Generator().manual_seed(seed)", "torch.Generator().manual_seed(0)",
        ("data/test_random.py::test_a_seed_is_the_data",),
    ),
)  # fmt: skip
#: Each fault once, whatever is drawn: there is no chance in them.
_turns = itertools.cycle(FAULTS)


def trial(_rng: random.Random) -> str | None:
    """Plants the next fault."""
    return wrong_of(next(_turns))


def wrong_of(fault: Fault) -> str | None:
    """Whether its tests pass without the fault and fail with it."""
    with tempfile.TemporaryDirectory(prefix="maxmargin-") as folder:
        copy = Path(folder)
        for part in PARTS:
            _copy(ROOT / part, copy / part)
        status, told = _status(copy, fault.tests)
        if status != PASSED:
            return f"{fault.name}: without the fault its tests end with status {status}: {told}"
        file = copy / "lightning_maxmargin" / fault.file
        text = file.read_text(encoding="utf-8")
        if text.count(fault.sound) != 1:
            return f"{fault.name}: what it replaces stands {text.count(fault.sound)} times in {fault.file}"
        file.write_text(text.replace(fault.sound, fault.faulty), encoding="utf-8")
        status, told = _status(copy, fault.tests)
    if status == PASSED:
        return f"silent: not caught: {fault.name}"
    return None if status == FAILED else f"{fault.name}: its tests end with status {status}: {told}"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _status(copy: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Of pytest in the copy, which imports the package from there; and its last line."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    # Without bytecode: a fault of the same length, planted within a second, would not be compiled anew.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
