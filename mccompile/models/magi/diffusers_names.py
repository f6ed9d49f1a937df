"""Renaming to and from the state dict of diffusers' draft MAGI-1 (pull request 14760), which is nearly the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Official prefix -> diffusers prefix.
RENAMED: tuple[tuple[str, str], ...] = (
    ("t_embedder.", "condition_embedder.t_embedder."),
    ("y_embedder.", "condition_embedder.y_embedder."),
    ("videodit_blocks.layers.", "transformer_blocks."),
    ("videodit_blocks.final_layernorm.", "final_layernorm."),
    ("final_linear.linear.", "final_linear."),
)
# Split into its groups' projections there.
_OURS, _THEIRS, _GROUPS = "linear_kv_xattn.weight", "linear_kv_xattn.projections.", 8


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for before, after in table:
        if name.startswith(before):
            return after + name[len(before) :]
    return name


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under diffusers' names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = _renamed(name, RENAMED)
        if target.endswith(_OURS):
            stem = target.removesuffix(_OURS)
            parts = tensor.chunk(_GROUPS, dim=0)
            renamed |= {f"{stem}{_THEIRS}{i}.weight": part.contiguous() for i, part in enumerate(parts)}
        else:
            renamed[target] = tensor
    return renamed


def from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`. Raises KeyError when a part of a split projection is missing."""
    table = tuple((after, before) for before, after in RENAMED)
    restored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = _renamed(name, table)
        if _THEIRS not in target:
            restored[target] = tensor
        elif target.endswith(f"{_THEIRS}0.weight"):
            head = name.removesuffix("0.weight")
            parts = [state[f"{head}{i}.weight"] for i in range(_GROUPS)]
            restored[target.removesuffix(f"{_THEIRS}0.weight") + _OURS] = torch.cat(parts)
    return restored
