"""Finds the driver of a pipeline: the kind that fits it, or plain steps if none fits."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from mccompile.pipelines import kinds
from mccompile.pipelines.driver import Driver, PipelineClock
from mccompile.pipelines.errors import NotAPipeline
from mccompile.pipelines.steps import StepDriver
from mccompile.runtime.stand_in import transformer_of


@cache
def drivers() -> tuple[Driver, ...]:
    """One driver per file of kinds/, and last the one that fits every pipeline."""
    names = sorted(found.name for found in pkgutil.iter_modules(kinds.__path__))
    loaded = (importlib.import_module(f"{kinds.__name__}.{name}") for name in names)
    return (*(module.DRIVER for module in loaded), StepDriver())


def driver_for(pipe: object) -> Driver:
    """The driver of a pipeline. Raises NotAPipeline (MC0701) for what has no transformer, or cannot be called."""
    if transformer_of(pipe) is None or not callable(pipe):
        raise NotAPipeline(type(pipe).__name__)
    return next(driver for driver in drivers() if driver.fits(pipe))


def clock_for(pipe: object) -> PipelineClock:
    """A new clock of the kind that the pipeline needs. Raises NotAPipeline (MC0701)."""
    return driver_for(pipe).clock(pipe)
