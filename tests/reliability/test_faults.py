"""The short form of the planted faults: the quickest of them, and that all are about what the package has."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.reliability.faults import FAULTS, Fault, wrong_of
from tests.reliability.long import SCENARIOS

QUICK = ("padding counted in selection", "a Farkas vector that is not checked")


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in QUICK], ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault) -> None:
    assert wrong_of(fault) is None


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
