"""The search for cyclic garbage rests during a capture; afterwards it is as it was before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from mccompile.capture import capture_batched
from mccompile.capture.uncollected import uncollected
from tests.zoo import zoo


@pytest.fixture(autouse=True)
def _on_again() -> Iterator[None]:
    yield
    gc.enable()


def test_while_a_model_is_captured_nothing_is_searched() -> None:
    family, searched = zoo("flux"), list[bool]()
    model = family.model()
    model.register_forward_pre_hook(lambda *_: searched.append(gc.isenabled()))
    with torch.no_grad():
        capture_batched(model, *(family.call(s) for s in family.sizes[:2]))
    assert searched
    assert not any(searched)
    assert gc.isenabled()


def test_after_an_error_it_is_on_again() -> None:
    with pytest.raises(ZeroDivisionError), uncollected():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_where_the_user_has_turned_it_off_it_stays_off() -> None:
    gc.disable()
    with uncollected(), uncollected():
        pass
    assert not gc.isenabled()
