"""Boolean attention masks as what attention makes of them, made once and not in every block."""

from __future__ import annotations

import torch

from mccompile.backend.role import Value
from mccompile.capture.types import CapturedModel


class AdditiveMasks:
    """0 where a mask is true and -inf elsewhere, in the dtype of the model, made anew when the mask is another."""

    def __init__(self, captured: CapturedModel) -> None:
        floats = {t.dtype for t in captured.module.state_dict().values() if t.is_floating_point()}
        self._dtype = next(iter(floats)) if len(floats) == 1 else None  # that of queries, where there is only one
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, name: str, mask: Value) -> Value:
        """The mask `name` as it is added; itself where it is not boolean, or the dtype of queries is not known."""
        if self._dtype is None or not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            return mask
        known = self._known.get(name)
        if known is None or known[0] is not mask:
            zeros = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device)
            known = self._known[name] = (mask, zeros.masked_fill_(mask.logical_not(), float("-inf")))
        return known[1]
