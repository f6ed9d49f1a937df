"""The text form of a plan: a table that people and `read_plan` can read. Also the difference of two plans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.policy.cells import Cell, Plan, PlannedAction
from mccompile.policy.evaluate import Grid
from mccompile.policy.groups import View, group_of, views
from mccompile.policy.sexpr import Atom, Reader, Tree, TreeItem, write

_UNKNOWN = "?"
_COLUMNS = ("step", "timestep", "sigma", "phase", "action", "account")
_WAY = "way"  # the last column, where another alternative than the first one says what stands in
_WORDS = frozenset({"phase", "action"})  # columns of words are aligned left, numbers right
_WHAT = "a plan"


def show_plan(plan: Plan) -> str:
    """The plan as an aligned table; `read_plan` reads it back exactly.

    Numbers are float32 in their shortest exact form; c0, c1, ... are the changes, in order; `?` is what only
    the run can know.
    """
    lines = [f"plan {write(plan.policy)}", f"phases {write(plan.phases)}"]
    lines += [f"accounts {write(plan.accounts)}"] if plan.accounts else []
    lines += [f"c{i} {write(c)}" for i, c in enumerate(plan.changes)]
    ways = any(cell.way for cell in plan.cells)
    way = (_WAY,) if ways else ()
    header = (*_COLUMNS, *plan.accounts, *(f"c{i}" for i in range(len(plan.changes))), *way)
    lines += _aligned([header, *((*_row(plan, cell), *([_way(cell)] if ways else [])) for cell in plan.cells)])
    lines += [f"note {write(n)}" for n in plan.notes]
    return "\n".join([*lines, _summary(plan)]) + "\n"


def _row(plan: Plan, cell: Cell) -> tuple[str, ...]:
    phase = _UNKNOWN if cell.phase is None else write(plan.phases[cell.phase])
    account = _UNKNOWN if cell.account is None else _float32(cell.account)
    others = [_float32(value) for value in cell.others] or [_UNKNOWN] * len(plan.accounts)
    clock = (_float32(plan.grid.timesteps[cell.step]), _float32(plan.grid.sigmas[cell.step]))
    return (str(cell.step), *clock, phase, cell.action, account, *others, *map(_float32, cell.values))


def _way(cell: Cell) -> str:
    """Which alternative stands in, counted from 1; 0 where nothing is reused for certain."""
    return str(cell.way + 1 if cell.action == "reuse" else 0)


def _float32(value: float) -> str:
    return str(np.float32(value))


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [name in _WORDS for name in rows[0]]
    for row in rows:
        cells = zip(row, widths, left, strict=True)
        yield "  ".join(text.ljust(w) if words else text.rjust(w) for text, w, words in cells).rstrip()


def _summary(plan: Plan) -> str:
    count = {a: sum(c.action == a for c in plan.cells) for a in ("compute", "reuse", "dynamic")}
    share = 100 * (1 - count["dynamic"] / len(plan.cells))
    return (
        f"summary computes {count['compute']} of {len(plan.cells)} steps, reuses {count['reuse']}, "
        f"leaves {count['dynamic']} to the run ({share:.0f}% static)"
    )


# ---- reading -----------------------------------------------------------------------------------------------
def read_plan(text: str) -> Plan:
    """The plan that `show_plan` wrote as `text`.

    Raises PolicyError (MC0308) with the line of the first thing that does not read.
    """
    source = Source.of_text(text, "<plan>")
    reader = Reader(source, _WHAT)
    lines: list[tuple[TreeItem, ...]] = []
    start = 0
    for line in source.text.split("\n"):
        if line.strip():
            lines.append(reader.items(start, start + len(line)))
        start += len(line) + 1
    if not lines:
        raise reader.error(source.span(0, 0), "the text is empty")
    plan = _Lines(reader, lines).plan()
    end = lines[-1][0].value.span
    if source.line(end.line).rstrip() != _summary(plan):
        raise reader.error(end, "the summary does not fit the table")
    return plan


_HEADING = re.compile(
    r"^(?:branch (?P<branch>\S+)|other branches)?(?:(?:^|, )(?:regions (?P<regions>\S+)|other regions))?$", re.MULTILINE
)


def heading(view: View, among: Sequence[View]) -> str:
    """The line above the plan of one of several views, such as `branch uncond, regions front`."""
    said = []
    if any(one.branch for one in among):
        said.append(f"branch {view.branch}" if view.branch else "other branches")
    if any(one.group for one in among):
        said.append(f"regions {view.group}" if view.group else "other regions")
    return ", ".join(said)


def headings(policy: ir.PolicyIR, plans: Mapping[str, Plan]) -> dict[str, str]:
    """The line above each plan, by the name of its view; blocks in a row that have one plan share it.

    before: the plans of `rear[0]`, `rear[1]`, `rear[2]`, of which the first two are one
    after:  `rear[0]`: "regions rear[0] to rear[1]", `rear[2]`: "regions rear[2]"
    """
    among, runs = views(policy), list[list[View]]()
    of_block = {group_of(region) for region in policy.regions if region.depth is not None}
    for view in among:
        last = runs[-1][-1] if runs else None
        both = last is not None and {view.group, last.group} <= of_block and last.branch == view.branch
        if last is not None and both and plans[view.name] == plans[last.name]:
            runs[-1].append(view)
        else:
            runs.append([view])
    ends = {run[0].name: f" to {run[-1].group}" if len(run) > 1 else "" for run in runs}
    return {run[0].name: heading(run[0], among) + ends[run[0].name] for run in runs}


def read_plans(text: str) -> dict[str, Plan]:
    """The plans of `explain --stage plan`, by the name of their view; that of a single plan is "".

    Raises PolicyError (MC0308) with the first thing that does not read.
    """
    heads = [found for found in _HEADING.finditer(text) if found[0]]
    if not heads or heads[0].start() > 0:
        return {"": read_plan(text)}
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return {
        View(head["branch"] or "", head["regions"] or "").name: read_plan(text[head.end() + 1 : end])
        for head, end in zip(heads, ends, strict=True)
    }


class _Lines:
    """The lines of a plan's text, taken one after the other."""

    __slots__ = ("at", "lines", "reader")

    def __init__(self, reader: Reader, lines: Sequence[tuple[TreeItem, ...]]) -> None:
        self.reader = reader
        self.lines = lines
        self.at = 0

    def plan(self) -> Plan:
        name = self.reader.value(str, self._single("plan"))
        phases = self.reader.value(tuple[str, ...], self._single("phases"))
        assert isinstance(name, str)
        assert isinstance(phases, tuple)
        accounts: tuple[str, ...] = ()
        if self._head() == "accounts":
            named = self.reader.value(tuple[str, ...], self._single("accounts"))
            assert isinstance(named, tuple)
            accounts = named
        changes: list[ir.Change] = []
        while self._head() == f"c{len(changes)}":
            change = self.reader.value(ir.Change, self._single(f"c{len(changes)}"))
            assert isinstance(change, ir.Change)
            changes.append(change)
        heads = [item.value for item in self._take("step")]
        ways = isinstance(heads[-1], Atom) and heads[-1].text == _WAY
        clock: list[tuple[float, float]] = []
        cells: list[Cell] = []
        while self._head().isdecimal():
            cell, timestep, sigma = self._cell(len(cells), phases, len(accounts), len(changes), ways)
            cells.append(cell)
            clock.append((timestep, sigma))
        notes: list[str] = []
        while self._head() == "note":
            notes.append(str(self.reader.value(str, self._single("note"))))
        last = self._take("summary")
        if self.at < len(self.lines):
            raise self.reader.error(self.lines[self.at][0].value.span, "nothing may follow the summary")
        if not cells:
            raise self.reader.error(last[0].value.span, "the table has no rows")
        grid = Grid(len(cells), tuple(t for t, _ in clock), tuple(s for _, s in clock))
        return Plan(name, grid, phases, tuple(changes), tuple(cells), tuple(notes), accounts)

    def _head(self) -> str:
        first = self.lines[self.at][0].value if self.at < len(self.lines) else None
        return first.text if isinstance(first, Atom) else ""

    def _take(self, keyword: str) -> tuple[TreeItem, ...]:
        found = self.lines[min(self.at, len(self.lines) - 1)]
        if self._head() != keyword:
            raise self.reader.error(found[0].value.span, f"a line beginning with `{keyword}` is expected")
        self.at += 1
        return found

    def _single(self, keyword: str) -> Tree:
        items = self._take(keyword)
        if len(items) != 2:
            raise self.reader.error(items[0].value.span, f"`{keyword}` takes one value")
        return items[1].value

    def _cell(
        self, step: int, phases: tuple[str, ...], others: int, changes: int, ways: bool
    ) -> tuple[Cell, float, float]:
        items = self._take(str(step))
        if len(items) != len(_COLUMNS) + others + changes + ways:
            raise self.reader.error(items[0].value.span, f"the row has {len(items)} columns")
        way = self.reader.value(int, items[-1].value) if ways else 0
        assert isinstance(way, int)
        if way < 0:
            raise self.reader.error(items[-1].value.span, "the number of an alternative is expected")
        items = items[: len(items) - ways]
        _, timestep, sigma, phase, action, account, *values = (i.value for i in items)
        known = None if _text(phase) == _UNKNOWN else str(self.reader.value(str, phase))
        if known is not None and known not in phases:
            raise self.reader.error(phase.span, "not a phase of the plan")
        cell = Cell(
            step=step,
            phase=None if known is None else phases.index(known),
            action=self._action(action),
            values=tuple(self._float32(v) for v in values[others:]),
            account=None if _text(account) == _UNKNOWN else self._float32(account),
            others=() if _text(account) == _UNKNOWN else tuple(self._float32(v) for v in values[:others]),
            way=max(way - 1, 0),
        )
        return cell, self._float32(timestep), self._float32(sigma)

    def _action(self, tree: Tree) -> PlannedAction:
        match _text(tree):
            case ("compute" | "reuse" | "dynamic") as action:
                return action
            case _:
                raise self.reader.error(tree.span, "compute, reuse or dynamic is expected")

    def _float32(self, tree: Tree) -> float:
        return float(np.float32(str(self.reader.value(float, tree))))


def _text(tree: Tree) -> str:
    return tree.text if isinstance(tree, Atom) else ""


# ---- difference --------------------------------------------------------------------------------------------
def diff_plans(a: Plan, b: Plan) -> str:
    """Where two plans decide differently: a line per step, then a line with their number."""
    lines = []
    for step in range(max(len(a.cells), len(b.cells))):
        before, after = (_decision(p, step) for p in (a, b))
        if before != after:
            lines.append(f"step {step}: {before} -> {after}")
    if not lines:
        return "the plans decide alike\n"
    return "\n".join([*lines, f"the plans differ in {len(lines)} steps"]) + "\n"


def _decision(plan: Plan, step: int) -> str:
    if step >= len(plan.cells):
        return "no such step"
    cell = plan.cells[step]
    phase = _UNKNOWN if cell.phase is None else plan.phases[cell.phase]
    return f"{phase} {cell.action}" + (f" by alternative {cell.way + 1}" if cell.way else "")
