"""A compiler for motion-aware caching in video generators.

compile(model_or_pipeline, policy, **parameters) puts a policy into a diffusion transformer; load_policy reads one.
Names are resolved on first use: the language and the planner do not need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mccompile.resources import own_version

if TYPE_CHECKING:
    from mccompile.api import compile
    from mccompile.language.load import load_policy
    from mccompile.runtime.compiled import CompiledModel

__version__ = own_version()
__all__ = ["CompiledModel", "__version__", "compile", "load_policy"]


def __getattr__(name: str) -> object:
    match name:
        case "compile":
            from mccompile import api

            return api.compile
        case "load_policy":
            from mccompile.language import load

            return load.load_policy
        case "CompiledModel":
            from mccompile.runtime import compiled

            return compiled.CompiledModel
    raise AttributeError(f"module `mccompile` has no attribute `{name}`; it has {', '.join(__all__)}")
