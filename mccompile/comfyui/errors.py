"""What the node refuses in ComfyUI (MC0725). ComfyUI shows the message at the node that was running."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class NodeRefused(StatedFailure):
    """A run in ComfyUI whose calls cannot be put under a policy without a doubt."""

    code = "MC0725"

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"the policy node cannot run here: {what}", remedy)
