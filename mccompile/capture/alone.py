"""Captures the blocks of a model alone, as its own code, where its forward cannot be captured whole.

before: the reason why the model cannot be captured, and two calls
after:  a captured model whose parts call the model's own modules. It has no row forms: policies decide per step
refuses when: no list of blocks is called once each, a block returns what it was not given in that shape, something
writes in place (blocks may write into tensors of the call, each into its own), or the parts do not give what the model
gives
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import Written, of_other_length
from mccompile.capture.errors import CaptureError, first_line
from mccompile.capture.export import Pair, paired
from mccompile.capture.opaque import OpaquePrelude, OpaqueShape, Stack
from mccompile.capture.opaque_graph import OWN, OpaqueGraph, WholeGraphPlan, assembled_of, located
from mccompile.capture.stacks import CHILD
from mccompile.capture.types import CapturedModel
from mccompile.capture.verify import prove
from mccompile.capture.watched import Met, versions, watched


class NotAlone(Exception):
    """The blocks of a model cannot be captured alone either; the message says why."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One block at both calls."""

    one: Met
    two: Met

    def pairs(self) -> Iterator[tuple[int, object, object]]:
        """(place, argument at the first call, argument at the second)."""
        yield from ((i, a, b) for i, (a, b) in enumerate(zip(self.one.given, self.two.given, strict=True)))


def capture_alone(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object], why: str,
    written: tuple[Written, ...] = (),
) -> CapturedModel:
    """The model with its blocks as its own code. why: the reason why it is not captured whole.

    probe, second: as for `capture`; tensors that forward writes into are as it leaves them (rewritten.py). written: the
    numbers that forward writes into its arguments.
    Raises NotAlone with the reason, and ProbeError (MC0402).
    """
    lists = of_other_length(probe, second)
    pair = paired(model, probe, second, lists)
    calls = [pytree.tree_unflatten(list(leaves), pair.spec) for leaves in (pair.probe, pair.second)]
    seen = _seen(model, calls, pair)
    reason = "none of its module lists holds blocks that are called once each and pass on what they are given"
    for chosen in _choices(seen) or _choices_of_one_size(model, seen, pair):
        try:
            captured = _captured(model, chosen, pair, calls, why, written)
            return replace(captured, written=written, lists=lists)
        except NotAlone as error:
            reason = str(error)
        except CaptureError as error:
            reason = f"around its blocks, {error.cause}"
    raise NotAlone(reason)


def _seen(model: nn.Module, calls: Sequence[Mapping[str, object]], pair: Pair) -> list[_Seen]:
    """Every module of a list whose modules are called once each, at both calls, in the order of the calls."""
    found = ((CHILD.match(path), path, module) for path, module in model.named_modules())
    listed = [path for match, path, module in found if match and next(module.children(), None) is not None]
    outer = [p for p in listed if not any(p.startswith(f"{q}.") for q in listed)]
    state = [*model.parameters(), *model.buffers()]
    before = versions(state)
    try:
        (one, _), (two, _) = (watched(model, outer, call) for call in calls)
    except Exception as error:  # whatever the model's own code raises
        raise NotAlone(f"its forward fails: {type(error).__name__}: {first_line(error)}") from error
    if versions(state) != before:
        raise NotAlone("its forward writes in place into its own buffers")
    counts = Counter(m.path for m in one), Counter(m.path for m in two)
    looped = {_list_of(path) for count in counts for path, times in count.items() if times > 1}
    one, two = ([m for m in run if _list_of(m.path) not in looped] for run in (one, two))
    if [m.path for m in one] != [m.path for m in two]:
        raise NotAlone("its two calls run other blocks")
    return [_Seen(a, b) for a, b in zip(one, two, strict=True)]


def _list_of(path: str) -> str:
    """The module list that a block at this path is in."""
    return path.rpartition(".")[0]


def _choices(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """The lists of blocks together, then each alone, the longest first. Blocks work on a size that varies."""
    return _ordered(seen, {name: blocks for name, blocks in _lists(seen).items() if _varies(blocks) and _pass(blocks)})


def _choices_of_one_size(model: nn.Module, seen: Sequence[_Seen], pair: Pair) -> list[list[_Seen]]:
    """As `_choices`, of a model that pads its tokens to one number: its blocks are those that the latent reaches."""
    moved = list(pair.probe)
    latent = moved[pair.source]
    assert isinstance(latent, torch.Tensor)
    moved[pair.source] = latent * -0.5 + 1
    again, _ = watched(model, [block.one.path for block in seen], pytree.tree_unflatten(moved, pair.spec))
    reached = {met.path for met, block in zip(again, seen, strict=True) if _differ(met.given, block.one.given)}
    lists = {name: blocks for name, blocks in _lists(seen).items() if reached.issuperset(b.one.path for b in blocks)}
    return _ordered(seen, {name: blocks for name, blocks in lists.items() if _pass(blocks)})


def _differ(one: Sequence[object], two: Sequence[object]) -> bool:
    """Whether the tensors among two lists of arguments differ."""
    pairs = zip(one, two, strict=True)
    return any(isinstance(a, torch.Tensor) and not _equal(a, b) for a, b in pairs)


def _lists(seen: Sequence[_Seen]) -> dict[str, list[_Seen]]:
    """The blocks of each list."""
    lists: dict[str, list[_Seen]] = {}
    for block in seen:
        lists.setdefault(_list_of(block.one.path), []).append(block)
    return lists


def _ordered(seen: Sequence[_Seen], fit: Mapping[str, list[_Seen]]) -> list[list[_Seen]]:
    """The lists together, then each alone, the longest first."""
    together = [block for block in seen if _list_of(block.one.path) in fit]
    alone = sorted(fit.values(), key=len, reverse=True) if len(fit) > 1 else []
    return [together, *alone] if together else []


def _varies(blocks: Sequence[_Seen]) -> bool:
    return any(a.shape != b.shape for block in blocks for a, b in _results(block))


def _pass(blocks: Sequence[_Seen]) -> bool:
    """Whether what blocks return they were given."""
    return all(_passed(block, ()) is not None for block in blocks)


def _results(block: _Seen) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = zip(block.one.results, block.two.results, strict=True)
    return [(a, b) for a, b in pairs if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)]


def _passed(block: _Seen, first: Sequence[int]) -> tuple[int, ...] | None:
    """For each tensor that a block returns the argument of its shape; None where one has none.

    first: the places of arguments to take before others.
    """
    if (block.one.spec, block.one.out_spec) != (block.two.spec, block.two.out_spec):
        return None
    left = sorted((i for i, a, _ in block.pairs() if isinstance(a, torch.Tensor)), key=lambda i: i not in first)
    places = []
    for result in _results(block):
        alike = (i for i in left if all(map(_alike, (block.one.given[i], block.two.given[i]), result)))
        place = next(alike, None)
        if place is None:
            return None
        left.remove(place)
        places.append(place)
    return tuple(places) or None


def _alike(one: object, two: torch.Tensor) -> bool:
    return isinstance(one, torch.Tensor) and one.shape == two.shape and one.dtype == two.dtype


def _made(blocks: Sequence[_Seen], index: int) -> dict[int, tuple[int, int]]:
    """The arguments of a block that earlier blocks made, unchanged since: place to (block, place of the result)."""
    makers: list[dict[int, tuple[int, int, int]]] = []
    for run in ([b.one for b in blocks[:index]], [b.two for b in blocks[:index]]):
        made = ((i, k, x, v) for i, m in enumerate(run) for k, (x, v) in enumerate(zip(m.results, m.left, strict=True)))
        makers.append({id(x): (i, k, v) for i, k, x, v in made})
    block, found = blocks[index], {}
    for place, a, b in block.pairs():
        one, two = makers[0].get(id(a)), makers[1].get(id(b))
        fresh = isinstance(a, torch.Tensor) and one is not None and two is not None and one[:2] == two[:2]
        if fresh and one and two and (one[2], two[2]) == (block.one.versions[place], block.two.versions[place]):
            found[place] = one[:2]
    return found


def _check_writes(blocks: Sequence[_Seen], index: int, calls: Sequence[Mapping[str, object]]) -> None:
    """Raises NotAlone where a block writes into anything but a tensor of the call that no other block is given.

    Such a tensor is the caller's own in each run, and it holds what the block last wrote where the block is passed by.
    """
    own = [{id(leaf) for leaf in pytree.tree_leaves(call)} for call in calls]
    for run, (met, given) in enumerate(zip((blocks[index].one, blocks[index].two), own, strict=True)):
        for value, before, after in zip(met.given, met.versions, met.after, strict=True):
            if before == after:
                continue
            if id(value) not in given:
                raise NotAlone(f"`{met.path}` writes in place into its arguments")
            for other in (b.two if run else b.one for b in blocks):
                if other is not met and any(_share(value, theirs) for theirs in other.given):
                    raise NotAlone(f"`{met.path}` writes in place into what `{other.path}` is given too")


def _share(one: object, two: object) -> bool:
    """Whether two tensors lie in the same memory."""
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return False
    return one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()


def _check_around(stack: Stack, inputs: Sequence[Sequence[object]]) -> None:
    """Raises NotAlone where the code around the blocks, which runs more than once in a step, writes into the call."""
    for leaves in inputs:
        before = versions(leaves)
        with torch.no_grad():
            stack.run(leaves, stack.passing(len(stack.blocks), None))
        if versions(leaves) != before:
            raise NotAlone("its forward writes in place into its arguments, outside of its blocks")


def _shape(
    model: nn.Module, blocks: Sequence[_Seen], index: int, calls: Sequence[Mapping[str, object]]
) -> OpaqueShape:
    """How a block is called. Raises NotAlone."""
    block = blocks[index]
    path = block.one.path
    _check_writes(blocks, index, calls)
    made = _made(blocks, index)
    passed = _passed(block, tuple(made))
    if passed is None:
        raise NotAlone(f"`{path}` returns what it was not given in that shape")
    streams = tuple(made) if index else passed
    fixed: dict[int, object] = {}
    shared: list[int] = []
    for place, a, b in block.pairs():
        if isinstance(a, torch.Tensor):
            shared += [] if place in streams else [place]
        elif type(a) is type(b) and a == b:
            fixed[place] = a
        else:
            shared.append(place)
    tensors = tuple(i for i, x in enumerate(block.one.results) if isinstance(x, torch.Tensor))
    others = {i: x for i, x in enumerate(block.one.results) if i not in tensors}
    spec, out_spec = block.one.spec, block.one.out_spec
    module = model.get_submodule(path)
    return OpaqueShape(module, spec, fixed, streams, tuple(shared), out_spec, tensors, others, passed)


def _plan(stack: Stack, blocks: Sequence[_Seen], inputs: Sequence[Sequence[object]]) -> WholeGraphPlan:
    """What the blocks share is what they are given when all blocks before them are passed by: numbers decide."""
    first: dict[tuple[int, int], tuple[int, int]] = {}
    owner = {
        (i, place): first.setdefault((id(block.one.given[place]), id(block.two.given[place])), (i, place))
        for i, block in enumerate(blocks)
        for place in stack.blocks[i].shared
    }
    entering = [(0, place) for place in stack.blocks[0].streams]
    wanted = [*entering, *dict.fromkeys(owner.values())]
    known = _given_when_passed(stack, blocks, wanted, inputs)
    given = [w for w in wanted if w in known]
    at: list[tuple[int, ...] | None] = []
    for i, shape in enumerate(stack.blocks):
        sources = [owner[i, place] for place in shape.shared]
        direct = all(s in known for s in sources) and bool(shape.streams)
        at.append(tuple(given.index(s) for s in sources) if direct else None)
    if not known.issuperset(entering):
        raise NotAlone(f"the arguments of `{blocks[0].one.path}` differ from run to run")
    paths = tuple(block.one.path for block in blocks)
    made = tuple(_origins(stack, blocks, i) for i in range(len(blocks)))
    continues = tuple(_continues(stack, blocks, i, at[i] is not None) for i in range(len(blocks)))
    return WholeGraphPlan(tuple(given), paths, tuple(at), made, continues)


def _continues(stack: Stack, blocks: Sequence[_Seen], index: int, direct: bool) -> tuple[int | None, ...]:
    """For each tensor that a block returns the number among its streams of the one of its shape, if there is one."""
    shape = stack.blocks[index]
    if direct or not index:
        return tuple(shape.streams.index(place) if place in shape.streams else None for place in shape.passed)
    before, left = _results(blocks[index - 1]), list(range(len(_results(blocks[index - 1]))))
    found: list[int | None] = []
    for result in _results(blocks[index]):
        place = next((i for i in left if all(map(_alike, before[i], result))), None)
        left = [i for i in left if i != place]
        found.append(place)
    return tuple(found)


def _origins(stack: Stack, blocks: Sequence[_Seen], index: int) -> tuple[tuple[int, int], ...]:
    """Where the streams of a block come from: (block, place among the tensors that it returns)."""
    made = _made(blocks, index)
    found = (made[place] for place in stack.blocks[index].streams if index)
    return tuple((block, stack.blocks[block].results.index(result)) for block, result in found)


def _given_when_passed(
    stack: Stack, blocks: Sequence[_Seen], wanted: Sequence[tuple[int, int]], inputs: Sequence[Sequence[object]]
) -> set[tuple[int, int]]:
    """Those of the values that come out the same where the blocks before are passed by."""
    own = [w for w in wanted if w[0] == 0]
    for asked in (wanted, own):
        try:
            with torch.no_grad():
                runs = [OpaquePrelude(stack, asked)(*leaves) for leaves in inputs]
        except Exception as error:  # the model's own code, on streams that it does not expect
            if asked is own:
                raise NotAlone(f"its forward fails before its blocks: {first_line(error)}") from error
            continue
        met = [[blocks[i].one.given[p] for i, p in asked], [blocks[i].two.given[p] for i, p in asked]]
        pairs = [zip(mine, theirs, strict=True) for mine, theirs in zip(runs, met, strict=True)]
        same = [[_equal(a, b) for a, b in pair] for pair in pairs]
        return {w for w, *equal in zip(asked, *same, strict=True) if all(equal)}
    return set()


def _equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    return type(one) is int and type(two) is int and one == two


def _captured(
    model: nn.Module, blocks: Sequence[_Seen], pair: Pair, calls: Sequence[dict[str, object]], why: str,
    written: tuple[Written, ...],
) -> CapturedModel:
    """The model with these blocks, proved at both calls. Raises NotAlone, IdentityError (MC0404)."""
    shapes = tuple(_shape(model, blocks, i, calls) for i in range(len(blocks)))
    varying = tuple(i for i, dynamic in enumerate(pair.dynamic) if dynamic)
    fixed = {i: x for i, x in enumerate(pair.probe) if i not in varying}
    stack = Stack(model, shapes, pair.spec, varying, fixed, written)
    inputs = [[leaves[i] for i in varying] for leaves in (pair.probe, pair.second)]
    plan = _plan(stack, blocks, inputs)
    _check_around(stack, inputs)
    builder = OpaqueGraph(stack, plan, pair)
    with torch.no_grad():
        out, out_spec = pytree.tree_flatten(stack.run(inputs[0], {}))
    module, outputs = builder.finish(len(out))
    assembled = assembled_of(builder, module, outputs, pair, out_spec, f"{OWN}, because {why}")
    source = builder.placeholders[pair.source].name
    return prove(located(assembled, inputs, source), model, calls, source)
