"""What the code of a model names, by itself: functions, classes, hooks and values that are exchanged are told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from mccompile.runtime.called import CalledCode, hooks_of_all

CODE = """
import functools, numpy, torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
import far.off.away.at

LIMIT, TABLE, GRID, EMPTY, __hidden__ = 3, {"a": [1]}, numpy.ones(2), None, 1

def helper(x): return deeper(x) * LIMIT
def deeper(x): return x + SIZES[0]
def unused(x): return x * UNREAD
SIZES, UNREAD, NAMED = [1, 2], 5, "name"
THIRD, TABLED = 1, 1
def third(x): return x * THIRD
def tabled(x): return x * TABLED

class Settings:
    mode = "a"
    table = {"one": tabled}
    mixed = {"one": helper, "two": 3}
    __marker__ = 1
    def act(self): return 1

class Layer(torch.nn.Module):
    pass

def factory(offset, inner, kind):
    def forward(self, x):
        return inner(x) + offset if kind else x
    return forward

def later(known):
    def forward(self, x): return x * known
    del known
    return forward

def around(forward):
    @functools.wraps(forward)
    def outer(self, x): return forward(self, x)
    return outer

class Processor:
    def __call__(self, x): return torch.sigmoid(x) * PROCESSED
PROCESSED = 1.0

class Base(torch.nn.Module):
    @property
    def scaled(self): return SCALE
    @staticmethod
    def fixed(x): return x * FIXED
    @classmethod
    def own(cls): return OWN or cls.own()
    def unnamed(self): return NEVER
SCALE, FIXED, OWN, NEVER = 1.5, 2.5, 3.5, 4.5

class Model(Base):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.processor = Processor()
    def forward(self, x):
        def run(y): return F.relu(y) * self.scaled * torch.nn.init.calculate_gain('relu')
        Settings, Layer, TABLE, GRID, EMPTY, __hidden__, far.off.away.at.last, attention_dispatch
        return run(helper(self.fixed(x))) + self.own() + len(NAMED)
    def train(self, mode=True): return super().train(mode)

class Inner(torch.nn.Module):
    forward = factory(7, third, Layer)
    @around
    def extra(self, x): return x
"""


def module(name: str, **values: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(values)
    return made


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module in which a model is written, in a package of its own."""
    at = module("far.off.away.at", last=lambda: 1)
    away = module("far.off.away", at=at)
    off = module("far.off", away=away)
    made = module("made_for_tests.modelling")
    for one in (module("far", off=off), off, away, at, made):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    exec(compile(CODE, "modelling.py", "exec"), vars(made))
    return made


CHANGED: dict[str, tuple[Callable[[Any], object], str]] = {
    "a function": (lambda m: setattr(m, "helper", lambda x: x), "made_for_tests.modelling.helper"),
    "a function that it calls": (lambda m: setattr(m, "deeper", lambda x: x), "made_for_tests.modelling.deeper"),
    "what a function around it reads": (lambda m: setattr(m, "THIRD", 2), "made_for_tests.modelling.THIRD"),
    "a number": (lambda m: setattr(m, "LIMIT", 4), "made_for_tests.modelling.LIMIT"),
    "a word": (lambda m: setattr(m, "NAMED", "other"), "made_for_tests.modelling.NAMED"),
    "what a list holds": (lambda m: m.SIZES.append(1), "made_for_tests.modelling.SIZES"),
    "what a dictionary holds": (lambda m: m.TABLE["a"].append(1), "made_for_tests.modelling.TABLE"),
    "an array": (lambda m: m.GRID.fill(2), "made_for_tests.modelling.GRID"),
    "a value around it": (lambda m: _cell(m, "offset", 8), "factory.<locals>.forward.offset"),
    "nothing becomes something": (lambda m: setattr(m, "EMPTY", 1), "made_for_tests.modelling.EMPTY"),
    "what a property reads": (lambda m: setattr(m, "SCALE", 2.0), "made_for_tests.modelling.SCALE"),
    "what a static method reads": (lambda m: setattr(m, "FIXED", 2.0), "made_for_tests.modelling.FIXED"),
    "what a class method reads": (lambda m: setattr(m, "OWN", 2.0), "made_for_tests.modelling.OWN"),
    "what a processor reads": (lambda m: setattr(m, "PROCESSED", 2.0), "made_for_tests.modelling.PROCESSED"),
    "a class": (lambda m: setattr(m, "Settings", type("Settings", (), {})), "made_for_tests.modelling.Settings"),
    "a class of modules": (lambda m: setattr(m, "Layer", nn.Linear), "made_for_tests.modelling.Layer"),
    "a setting of a class": (lambda m: setattr(m.Settings, "mode", "b"), "Settings.mode"),
    "a function in its table": (lambda m: m.Settings.table.update(one=len), "Settings.one"),
    "what that function reads": (lambda m: setattr(m, "TABLED", 2), "made_for_tests.modelling.TABLED"),
    "what is removed": (lambda m: delattr(m, "helper"), "made_for_tests.modelling.helper"),
}  # fmt: skip
UNCHANGED: dict[str, Callable[[Any], object]] = {
    "nothing": lambda m: None,
    "what no forward names": lambda m: setattr(m, "UNREAD", 6),
    "what a method reads that is not called": lambda m: setattr(m, "NEVER", 6),
    "a name of Python": lambda m: setattr(m, "__hidden__", 2),
    "an equal list": lambda m: setattr(m, "SIZES", [1, 2]),
    "a name of Python in a class": lambda m: setattr(m.Settings, "__marker__", 2),
    "a table of other things": lambda m: m.Settings.mixed.update(one=len),
    "four modules deep": lambda m: setattr(sys.modules["far.off.away.at"], "last", len),
}


def _cell(made: Any, name: str, value: object) -> None:
    forward = made.Inner.forward
    forward.__closure__[forward.__code__.co_freevars.index(name)].cell_contents = value


@pytest.mark.parametrize("what", CHANGED)
def test_what_the_code_names_is_told_when_it_is_another(own: Any, what: str) -> None:
    called = CalledCode(own.Model())
    assert called.replaced() == ""
    change, name = CHANGED[what]
    change(own)
    assert called.replaced() == f"its code finds another `{name}`"


@pytest.mark.parametrize("what", UNCHANGED)
def test_what_it_does_not_name_may_change(own: Any, what: str) -> None:
    called = CalledCode(own.Model())
    UNCHANGED[what](own)
    assert called.replaced() == ""


def test_functions_of_torch_count_as_deep_as_names_lead(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A maker of attention kernels puts its own in the place of torch's."""
    called = CalledCode(own.Model())
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu", lambda x: x)
        assert called.replaced() == "its code finds another `torch.nn.functional.relu`"
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.init, "calculate_gain", lambda x: x)
        assert called.replaced() == "its code finds another `torch.nn.init.calculate_gain`"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "sigmoid", lambda x: x)
        assert called.replaced() == "its code finds another `torch.sigmoid`"
    assert called.replaced() == ""


def test_what_a_function_of_another_package_reads_is_its_own_matter(own: Any) -> None:
    foreign = module("another.package", HIDDEN=1)
    exec("def helper(x): return HIDDEN", vars(foreign))
    assert isinstance(foreign.helper, FunctionType)
    own.helper = foreign.helper
    called = CalledCode(own.Model())
    foreign.HIDDEN = 2
    assert called.replaced() == ""


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_hooks_of_all_modules_are_told(own: Any, register: Any) -> None:
    called, before = CalledCode(own.Model()), hooks_of_all()

    def hook(*_: object) -> None:
        return None

    handle = register(hook)
    try:
        assert hooks_of_all() == (*before, hook)
        assert called.replaced() == "all modules have other hooks"
    finally:
        handle.remove()
    counting = SimpleNamespace(__module__="torch.profiler")
    handle = register(counting)
    try:
        assert hooks_of_all() == before
    finally:
        handle.remove()
    assert called.replaced() == ""


def test_a_value_around_a_function_that_is_not_there_yet_is_none(own: Any) -> None:
    own.Inner.forward = own.later(3)
    called = CalledCode(own.Model())
    assert called.replaced() == ""
    _cell(own, "known", 4)
    assert called.replaced() == "its code finds another `later.<locals>.forward.known`"
