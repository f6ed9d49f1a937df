"""Captures a model from two recorded calls: the order of the passes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import networkx as nx
from torch import fx, nn

from mccompile.capture.apart import Parts
from mccompile.capture.assemble import assemble
from mccompile.capture.by_sample import with_other_masks
from mccompile.capture.counted import counting_fewer
from mccompile.capture.dependence import data_inputs, flow_graph, writes_outside
from mccompile.capture.errors import CaptureError, ExportError, NoBlocksError
from mccompile.capture.export import Exported, export_model, without_defaults
from mccompile.capture.facts import Facts, ScalarFact, measure
from mccompile.capture.guards import broken, sizes_of_constants
from mccompile.capture.kinds import group
from mccompile.capture.listed import attends_in_no_list, list_blocks
from mccompile.capture.masks import share_masks
from mccompile.capture.normalise import normalise
from mccompile.capture.numbering import number_anew
from mccompile.capture.own import own_weights
from mccompile.capture.samples import samples_of
from mccompile.capture.stacks import PRELUDE, Partition, partition
from mccompile.capture.streams import roles
from mccompile.capture.template import Template, cut
from mccompile.capture.together import together
from mccompile.capture.types import Assembled, CapturedModel
from mccompile.capture.unsplit import unsplit
from mccompile.capture.verify import prove


def capture(
    model: nn.Module,
    probe: Mapping[str, object],
    second: Mapping[str, object],
    *more: Mapping[str, object],
    unbatched: str = "",
) -> CapturedModel:
    """Captures a model from two recorded calls of its forward at two sizes.

    probe, second: keyword arguments of `model.forward`. Sizes that differ are dynamic, all else is constant.
    more: further calls of these arguments, at which the result must hold too.
    unbatched: why the number of samples may not vary, where that is known.
    Raises CaptureError (MC04xx); what cannot be proved about rows is a Refusal of the result, never an error.
    """
    exported, second = counting_fewer(model, export_model(model, probe, second), without_defaults(model, second))
    calls = [without_defaults(model, call) for call in (probe, second, *more)]
    if exported.looped:
        calls += with_other_masks(model, calls[0])
    if attends_in_no_list(exported.module.graph):
        list_blocks(exported.module)
    try:
        return captured_from(model, exported, calls, unbatched)
    except NoBlocksError as error:
        again = export_model(model, probe, second, each=True)
        if not list_blocks(again.module):
            raise
        try:
            return captured_from(model, again, calls, unbatched)
        except NoBlocksError:
            raise error from None
    except CaptureError:
        if not exported.copies:
            raise
    return captured_from(model, export_model(model, probe, second, each=True), calls, unbatched)


def captured_from(
    model: nn.Module, exported: Exported, calls: Sequence[dict[str, object]], unbatched: str = "",
    proved: Callable[[Assembled], CapturedModel] | None = None,
) -> CapturedModel:
    """As `capture`, from an exported graph, which it changes. proved: what is known of its parts without running them.
    """  # fmt: skip
    own_weights(exported.module)
    facts: Facts = measure(exported.module, exported.probe, exported.second, exported.copies)
    normalise(exported.module, facts)
    facts = unsplit(exported.module, facts)
    proof = proved or (lambda made: prove(made, model, calls, exported.source, unbatched))
    captured = _with_tokens_together(model, exported, facts, proof)
    if captured is None:
        captured = _parts(model, exported, facts, proof)
    demanded = (*exported.guards, *sizes_of_constants(*calls[:2]))
    sizes = tuple(g for g in demanded if not any(broken((g,), call) for call in calls))
    return replace(captured, guards=(*sizes, *exported.told))


def _parts(
    model: nn.Module, exported: Exported, facts: Facts, proof: Callable[[Assembled], CapturedModel]
) -> CapturedModel:
    """The proved parts of a normalised graph."""
    share_masks(exported.module, facts, exported.source)
    number_anew(exported.module)
    return proof(assemble(_take_apart(exported, facts), type(model).__name__))


def _with_tokens_together(
    model: nn.Module, exported: Exported, facts: Facts, proof: Callable[[Assembled], CapturedModel]
) -> CapturedModel | None:
    """As `_parts`, with the tokens of a sample together; None unless every block then has a form by rows, on a grid."""
    own = exported.module.graph
    joined = together(own, facts, exported.source)
    if joined is None:
        return None
    exported.module.graph = joined.graph
    try:
        captured = _parts(model, exported, joined.facts, proof)
    except CaptureError:
        captured = None
    if captured is not None and captured.grid is not None and all(kind.partial is not None for kind in captured.kinds):
        return captured
    exported.module.graph = own
    return None


def _take_apart(exported: Exported, facts: Facts) -> Parts:
    graph = exported.module.graph
    flow = flow_graph(graph)
    for node, root in writes_outside(flow):
        raise ExportError(
            node.name, f"forward writes in place into its operand `{root.name}`", "let forward return what it changes"
        )
    depends = data_inputs(graph, flow, facts)
    parts = partition(graph, flow, facts, depends, exported.source)
    templates = _templates(flow, facts, parts)
    kinds, kind_of = group(templates)
    by_blocks = {n for n, own in parts.part.items() if own > PRELUDE}
    latent = {n for n, names in depends.items() if exported.source in names}
    samples = samples_of(graph, facts)
    found = tuple(roles(kind, by_blocks, latent, samples) for kind in kinds)
    return Parts(exported, facts, depends, parts, tuple(templates), tuple(kinds), tuple(kind_of), found)


def _templates(flow: nx.DiGraph, facts: Facts, parts: Partition) -> list[Template]:
    """A template for each block, in order."""
    nodes: dict[int, list[fx.Node]] = {own: [] for own in (PRELUDE, *range(len(parts.paths)), parts.postlude)}
    for node in flow.nodes:
        if node in parts.part:
            nodes[parts.part[node]].append(node)
    prelude = set(nodes[PRELUDE])

    def read_later(node: fx.Node, own: int) -> bool:
        return any(parts.part.get(user, parts.postlude) > own for user in _readers(node, facts))

    made = []
    for own, path in enumerate(parts.paths):
        tensors = (n for n in nodes[own] if not isinstance(facts[n], ScalarFact))
        made.append(cut(path, nodes[own], prelude, {n for n in tensors if read_later(n, own)}, facts))
    return made


def _readers(node: fx.Node, facts: Facts) -> set[fx.Node]:
    """What reads a value, itself or by way of numbers."""
    found: set[fx.Node] = set()
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user not in found:
            found.add(user)
            todo += list(user.users) if isinstance(facts.get(user), ScalarFact) else []
    return found
