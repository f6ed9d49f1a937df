"""The node: a model and a policy in, the model under the policy out."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, ClassVar, Literal

from mccompile.cli.options import chosen
from mccompile.comfyui.errors import NodeRefused
from mccompile.comfyui.session import NodeSession
from mccompile.policy.bind import bind
from mccompile.policy.choosing import load_chosen

KEY = "mccompile"
HELP = (
    "The name of a shipped policy (motioncache, teacache, taylorseer, ...) or the path of a .policy file. "
    "Its parameters are written as threshold=0.2, warmup=5."
)


class PolicyNode:
    """Puts a policy on a video model. The model is captured and compiled at its first step under the policy."""

    CATEGORY = "model_patches"
    DESCRIPTION = HELP
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    INPUTS: ClassVar[dict[str, object]] = {
        "model": ("MODEL",),
        "policy": ("STRING", {"default": "teacache", "tooltip": HELP}),
        "parameters": ("STRING", {"default": "", "tooltip": "NAME=VALUE, separated by commas"}),
        "backend": (["inductor", "eager"], {"tooltip": "eager compiles nothing: it begins at once and runs slower"}),
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, object]:  # ComfyUI asks for this name
        """What the node takes, as ComfyUI asks for it."""
        return {"required": cls.INPUTS}

    def apply(
        self, model: Any, policy: str, parameters: str, backend: Literal["inductor", "eager"]
    ) -> tuple[Any]:
        """model: ComfyUI's ModelPatcher, which stays as it is. Returns a clone of it under the policy.

        Raises PolicyError, and NodeRefused (MC0725), for a policy or parameters that are no good: at once, and not at
        the first step.
        """
        found = load_chosen(policy.strip(), dict(_assigned(part) for part in parameters.split(",") if part.strip()))
        bind(found.policy, found.numbers)
        session = NodeSession(found.policy, found.numbers, backend)
        kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
        clone = model.clone()
        for kind, wrapper in ((kinds.OUTER_SAMPLE, session.sample), (kinds.DIFFUSION_MODEL, session.call)):
            clone.remove_wrappers_with_key(kind, KEY)
            clone.add_wrapper_with_key(kind, KEY, wrapper)
        return (clone,)


def _assigned(text: str) -> tuple[str, float | str]:
    try:
        return chosen(text)
    except argparse.ArgumentTypeError as error:
        raise NodeRefused(f"its parameters are no good: {error}", "write threshold=0.2, warmup=5") from None
