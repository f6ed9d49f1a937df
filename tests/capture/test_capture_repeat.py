"""Blocks that repeat an earlier one are traced once. The graph is the one that an export of every block gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mccompile.capture import CapturedModel
from mccompile.capture.capture import captured_from
from mccompile.capture.errors import ExportError
from mccompile.capture.export import export_model, without_defaults

DEPTH = 5
Between = Callable[["Tower", int, list[torch.Tensor], torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """x + f(x + shift) with two layers, a buffer and an attribute."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, width, bias=False)
        self.register_buffer("gain", torch.rand(width))
        self.scale = 2.0

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None, add: int = 0) -> torch.Tensor:
        own = x if shift is None else x + shift
        return x + self.out(self.inner(own)) * self.gain * self.scale + add


class Tower(nn.Module):
    """A stack of blocks; `between` is the model's own code around a block. It is given what all before it made."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Conv3d(3, 8, (1, 2, 2), (1, 2, 2)), nn.Linear(8, 12)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.between = between

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.embed(latent).flatten(2).transpose(1, 2).contiguous()
        shift, made = x.mean(1, keepdim=True), [x]
        for i in range(DEPTH):
            made.append(self.between(self, i, made, shift))
        return self.head(made[-1])


def _straight(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    return tower.blocks[i](made[-1], shift)


def _across(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    """Two blocks late in the stack add what two early ones gave."""
    return tower.blocks[i](made[-1] if i < 3 else made[-1] + made[DEPTH - i], shift)


def _at_one_size(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    """A branch of one block on a size: its guard counts."""
    x = made[-1]
    return tower.blocks[i](x.tanh() if i == 3 and x.size(1) > 11 else x, shift)


def _numbered(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    return tower.blocks[i](made[-1], shift, add=i)


def _looks_ahead(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    """The model's code reads the weight of a block that is not traced."""
    return tower.blocks[i](made[-1].to(tower.blocks[4].out.weight.dtype), shift)


def _sets_another(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    """One block is changed while another is at work."""
    if i == 3:
        tower.blocks[4].scale = 3.0
    return tower.blocks[i](made[-1], shift)


def _gives_another(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
    """One block is given a module while another is at work."""
    if i == 3:
        tower.blocks[4].more = nn.Identity()
    return tower.blocks[i](made[-1], shift)


def _calls() -> list[dict[str, object]]:
    return [{"latent": torch.randn(1, 3, *size)} for size in ((3, 4, 6), (5, 6, 10))]


def _one_scale(tower: Tower) -> None:
    tower.blocks[3].scale = 3.0


def _tied(tower: Tower) -> None:
    """One block shares a weight with another, the others do not."""
    tower.blocks[4].out.weight = tower.blocks[0].out.weight


def _one_for_all(tower: Tower) -> None:
    for block in tower.blocks:
        block.inner = tower.blocks[0].inner


def _hook(tower: Tower) -> None:
    tower.blocks[2].register_forward_hook(lambda block, given, made: made * 2)


def _inner_hook(tower: Tower) -> None:
    tower.blocks[2].inner.register_forward_hook(lambda block, given, made: made * 2)


class Counts(Block):
    """A block that changes while it runs: another cannot stand for it."""

    calls = 0

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None, add: int = 0) -> torch.Tensor:
        self.calls += 1
        return super().forward(x, shift, add)


def _counts(tower: Tower) -> None:
    tower.blocks = nn.ModuleList(Counts() for _ in range(DEPTH))


class Casts(Block):
    """A block that casts what it is given, as those that add in float32 do. Here the casts change nothing."""

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None, add: int = 0) -> torch.Tensor:
        return super().forward(x.float(), None if shift is None else shift.float(), add).type_as(x)


def _casts(tower: Tower) -> None:
    tower.blocks = nn.ModuleList(Casts() for _ in range(DEPTH))


def _nothing(tower: Tower) -> None:
    """All blocks differ in their weights alone."""


def _said(captured: CapturedModel) -> tuple[object, ...]:
    nodes = [(n.format_node(), [p for p, _ in _stack(n)]) for n in captured.module.graph.nodes]
    forms = [[n.format_node() for n in kind.full.graph.nodes] for kind in captured.kinds]
    return nodes, forms, captured.blocks, captured.guards, captured.refusals


def _stack(node: torch.fx.Node) -> list[tuple[str, object]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def _both(model: nn.Module, calls: list[Mapping[str, object]]) -> tuple[CapturedModel, CapturedModel, set[str]]:
    """The capture, that of an export of every block, and the paths of the blocks that were not traced."""
    exported = export_model(model, *calls)
    whole = export_model(model, *calls, each=True)
    assert not whole.copies
    copied = {p for node in exported.copies for p, _ in _stack(node) if re.fullmatch(r"blocks\.\d+", p)}
    given = [without_defaults(model, call) for call in calls]
    return captured_from(model, exported, given), captured_from(model, whole, given), copied


@pytest.mark.parametrize(
    ("between", "change", "copied"),
    [
        (_straight, _nothing, {1, 2, 3, 4}),
        (_across, _nothing, {1, 2, 3, 4}),
        (_at_one_size, _nothing, {1, 2, 3, 4}),
        (_numbered, _nothing, set()),
        (_straight, _one_scale, {1, 2, 4}),
        (_straight, _tied, {1, 2, 3, 4}),
        (_straight, _one_for_all, set()),
        (_straight, _hook, {1, 3, 4}),
        (_straight, _inner_hook, {1, 3, 4}),
        (_straight, _counts, set()),
        (_straight, _casts, {1, 2, 3, 4}),
        (_looks_ahead, _nothing, {1, 2, 3, 4}),
        (_sets_another, _nothing, {1, 2, 3}),
        (_gives_another, _nothing, {1, 2, 3}),
    ],
)
def test_the_graph_is_that_of_an_export_of_every_block(
    between: Between, change: Callable[[Tower], None], copied: set[int]
) -> None:
    tower = Tower(between)
    change(tower)
    weights = {name: id(weight) for name, weight in tower.named_parameters(remove_duplicate=False)}
    short, whole, found = _both(tower.eval().requires_grad_(False), _calls())
    assert found == {f"blocks.{i}" for i in copied}
    assert _said(short) == _said(whole)
    assert all("forward" not in vars(block) for block in tower.blocks)
    assert weights == {name: id(weight) for name, weight in tower.named_parameters(remove_duplicate=False)}


def test_an_export_without_the_weights_of_repeated_blocks_gives_the_graph_their_values() -> None:
    tower = Tower(_straight).eval().requires_grad_(False)
    exported = export_model(tower, *_calls())
    given = {n: w for n, w in exported.module.named_parameters() if n.startswith("blocks.")}
    assert given.keys() == {n for n, _ in tower.named_parameters() if n.startswith("blocks.")}
    assert all(weight is tower.get_parameter(name) for name, weight in given.items())


def test_weights_come_back_when_the_export_fails() -> None:
    def fails(tower: Tower, i: int, made: list[torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
        return tower.blocks[i](made[-1], shift) if i < 4 or made[-1].sum() > 0 else made[-1]

    tower = Tower(fails).eval().requires_grad_(False)
    weights = [id(weight) for weight in tower.parameters()]
    with pytest.raises(ExportError):
        export_model(tower, *_calls())
    assert weights == [id(weight) for weight in tower.parameters()]


# ---- lists with an entry for each block, and values that blocks share in an object ---------------------------------
@dataclass(frozen=True)
class Seen:
    """What all blocks attend by; no container that an export takes apart."""

    bias: torch.Tensor


class Attends(nn.Module):
    """x + attention to kept keys and its own; gives its keys of the first rows too, a size that it was not given."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, kept: torch.Tensor, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        own = self.key(x)
        keys = torch.cat([kept, own], 1)
        weights = torch.softmax(x @ keys.transpose(1, 2) + seen.bias, -1)
        return x + self.out(weights @ keys), own[:, : x.size(1) // 2]


class Keeps(nn.Module):
    """Blocks that are given keys of an earlier call, as MAGI-1's. other: the block that is given another bias."""

    def __init__(self, other: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Conv3d(3, 8, (1, 2, 2), (1, 2, 2)), nn.Linear(8, 12)
        self.blocks = nn.ModuleList(Attends() for _ in range(DEPTH))
        self.other = other

    def forward(self, latent: torch.Tensor, kept: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = self.embed(latent).flatten(2).transpose(1, 2).contiguous()
        seen, new = Seen(x.mean(-1, keepdim=True)), []
        for i, block in enumerate(self.blocks):
            x, own = block(x, kept[i], Seen(seen.bias[:, :1]) if i == self.other else seen)
            new.append(own)
        return self.head(x), *new


@pytest.mark.parametrize(("other", "copied"), [(-1, {1, 2, 3, 4}), (3, {1, 2, 4})])
def test_each_block_has_its_entry_of_a_list(other: int, copied: set[int]) -> None:
    """Sizes that are equal in both calls are one size; the graph reads each block's own entry."""
    model = Keeps(other).eval().requires_grad_(False)
    sizes = ((3, 4, 6), 5), ((5, 6, 10), 9)
    calls = [{"latent": torch.randn(1, 3, *size), "kept": [torch.randn(1, rows, 8) for _ in range(DEPTH)]}
             for size, rows in sizes]  # fmt: skip
    exported = export_model(model, *calls)
    copies = {p for node in exported.copies for p, _ in _stack(node) if re.fullmatch(r"blocks\.\d+", p)}
    assert copies == {f"blocks.{i}" for i in copied}
    exported.module.recompile()
    for size, rows in (*sizes, ((2, 8, 4), 7)):
        call = {"latent": torch.randn(1, 3, *size), "kept": [torch.randn(1, rows, 8) for _ in range(DEPTH)]}
        for found, wanted in zip(exported.module(**call), model(**call), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


class KeepsNamed(Keeps):
    """The same with arguments of any name, which an export has to be told of."""

    def forward(self, **given: object) -> tuple[torch.Tensor, ...]:
        return super().forward(**given)  # type: ignore[arg-type]


def test_the_forward_that_a_model_had_is_there_again() -> None:
    """Two of its stand-ins are there at once while it is exported, and the user may have set a third."""
    model = KeepsNamed(-1).eval().requires_grad_(False)
    calls = [{"latent": torch.randn(1, 3, *size), "kept": [torch.randn(1, rows, 8) for _ in range(DEPTH)]}
             for size, rows in (((3, 4, 6), 5), ((5, 6, 10), 9))]  # fmt: skip
    assert export_model(model, *calls).copies
    assert "forward" not in vars(model)
    own = model.forward
    vars(model)["forward"] = own
    assert export_model(model, *calls).copies
    assert vars(model)["forward"] is own
