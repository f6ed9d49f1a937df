"""How a pass works on a part: it changes a copy, and finds placeholders and results by what they take and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from mccompile.capture.part import AttentionSite, Operand, Part, Result


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a pass returns if it applies: the part in its new form, and the parts that it made beside it.

    A pass that does not apply returns a Refusal with the reason; the part then stays as it is.
    """

    part: Part
    made: tuple[Part, ...] = ()


class Draft:
    """A copy of a part that a pass may change.

    takes, gives: the placeholder of each operand and the value of each result, in order. A pass adds, removes and
    renames entries. attentions: the site of each node that attends. copies: for each node of the part its copy.
    """

    def __init__(self, part: Part) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.graph.graph_copy(part.graph, self.copies)
        self.takes: dict[Operand, fx.Node] = {o: self.copies[n] for o, n in part.holders().items()}
        self.gives: dict[Result, fx.node.Argument] = {
            r: self.copies[v] if isinstance(v, fx.Node) else v for r, v in part.results().items()
        }
        named = {s.node: s for s in part.attentions}
        self.attentions = {self.copies[n]: named[n.name] for n in part.graph.nodes if n.name in named}
        self._root = part.module

    def take(self, operand: Operand, name: str) -> fx.Node:
        """Adds a placeholder behind the others."""
        holders = self.graph.find_nodes(op="placeholder")
        with self.graph.inserting_after(holders[-1]):
            self.takes[operand] = self.graph.placeholder(name)
        return self.takes[operand]

    def rename(self, operands: Mapping[Operand, Operand]) -> None:
        """Lets placeholders take something else from now on. They stay where they are."""
        self.takes = {operands.get(o, o): n for o, n in self.takes.items()}

    def drop(self, operand: Operand) -> None:
        """Removes a placeholder that nothing reads any more."""
        self.graph.erase_node(self.takes.pop(operand))

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        """Puts a value in the place of another one, which goes; what is known of it holds for the new one."""
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.gives = {r: new if v is node else v for r, v in self.gives.items()}
        if node in self.attentions:
            self.attentions[new] = self.attentions.pop(node)
        self.graph.erase_node(node)

    def part(self) -> Part:
        """Closes the copy, without operators whose results nothing reads. Operators that write to an argument stay."""
        self.graph.output(tuple(self.gives.values()))
        for node in reversed(list(self.graph.nodes)):
            if node.op in ("call_function", "get_attr") and not node.users and not mutates(node):
                self.graph.erase_node(node)
        self.graph.lint()
        present = set(self.graph.nodes)
        sites = (
            AttentionSite(n.name, s.path, s.keys, s.values, s.mask) for n, s in self.attentions.items() if n in present
        )
        return Part(fx.GraphModule(self._root, self.graph), tuple(self.takes), tuple(self.gives), tuple(sites))


def inputs_of(node: fx.Node) -> set[fx.Node]:
    """Returns the placeholders that a value is made from."""
    found, todo = set(), [node]
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo += at.all_input_nodes
    return {n for n in found if n.op == "placeholder"}


def mutates(node: fx.Node) -> bool:
    """Says whether an operator writes to an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
