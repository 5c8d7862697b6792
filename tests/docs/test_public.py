"""Every public name says what it takes, in which shapes, what it raises, and has its place on the site."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from tests.docs.public_names import (
    SHAPE,
    Public,
    callables,
    documented,
    is_hook,
    objects,
    on_pages,
    raises_input_error,
    takes_tensors,
)

PUBLIC = list(callables())


def test_there_are_public_names() -> None:
    assert len(objects()) > 100
    assert len(PUBLIC) > 150


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.name.removeprefix("lightning_maxmargin."))
def test_a_public_name_says_what_it_takes_and_raises(public: Public) -> None:
    assert public.text, "no docstring"
    missing = [name for name in public.parameters if name not in documented(public.section("Args"))]
    assert not missing, f"Args lack {missing}"
    if takes_tensors(public.function):
        assert SHAPE.search(public.text), "no shape of a tensor, as (n, T)"
    if raises_input_error(public.function):
        assert "InputError" in public.section("Raises"), "InputError is not under Raises"


def test_classes_say_what_they_are_and_dataclasses_their_fields() -> None:
    for name, thing in objects().items():
        if not inspect.isclass(thing):
            continue
        text = inspect.cleandoc(thing.__doc__ or "")
        assert text, name
        if dataclasses.is_dataclass(thing):
            told = documented(Public(name, thing, text).section("Attributes"))
            told |= documented(Public(name, thing, text).section("Args"))
            own = [key for key in thing.__annotations__ if not key.startswith("_")]
            assert not [key for key in own if key not in told], f"{name}: {own} of which {told} are explained"


def test_attributes_of_public_classes_say_what_they_are() -> None:
    for name, thing in objects().items():
        if not inspect.isclass(thing):
            continue
        for key, member in vars(thing).items():
            if isinstance(member, property) and not key.startswith("_") and not is_hook(thing, key):
                assert member.__doc__, f"{name}.{key}"


def test_the_site_has_every_public_name() -> None:
    there = {id(thing) for thing in on_pages()}
    missing = [name for name, thing in objects().items() if id(thing) not in there]
    assert not missing, "put them on a page of docs/api"
