"""The short form of the planted faults: the quickest two, and that all are about what the package has."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.reliability import faults
from tests.reliability.faults import FAULTS, Fault, wrong_of
from tests.reliability.long import SCENARIOS

QUICK = ("a Farkas vector that is not checked", "padding counted in selection")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [x for x in FAULTS if x.name in QUICK], ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault) -> None:
    assert wrong_of(fault) is None


def test_tests_that_pass_with_a_fault_or_end_otherwise_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[0]
    for ends, wrong in (
        ([faults.PASSED, faults.PASSED], f"silent: not caught: {fault.name}"),
        ([faults.PASSED, faults.FAILED], None),
        ([faults.FAILED], f"{fault.name}: without the fault its tests end with status {faults.FAILED}: as told"),
        ([faults.PASSED, 5], f"{fault.name}: its tests end with status 5: as told"),
    ):
        statuses = iter(ends)
        monkeypatch.setattr(faults, "_status", lambda *_, statuses=statuses: (next(statuses), "as told"))
        assert wrong_of(fault) == wrong


@pytest.mark.slow
def test_a_fault_that_no_test_sees_is_told() -> None:
    blind = FAULTS[0]._replace(tests=("test_atomic.py::test_a_failure_leaves_what_was_there",))
    assert wrong_of(blind) == f"silent: not caught: {blind.name}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_a_fault_replaces_stands_once_in_the_package(fault: Fault) -> None:
    text = (ROOT / "lightning_maxmargin" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.sound) == 1
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8") or not name


def test_the_long_form_plants_each_once() -> None:
    assert SCENARIOS["faults"].cases == len(FAULTS)
