"""The table of pipelines in docs/models.md: whole generations of tiny random pipelines of diffusers.

`python -m tests.pipeline_table` makes the rows that docs/benchmarks/pipelines.json does not have, and renders the page.
With names (`WanPipeline`, or `Wan*`) it makes these rows again. Each row is kept as soon as it is made.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mccompile import api
from mccompile.diagnostics.failure import Failure
from mccompile.language.source import Source
from mccompile.pipelines.probe import SIZES
from mccompile.runtime.compiled import CompiledModel
from tests.model_table import RAW, STEPWISE, TOKENS, short
from tests.pipes import hunyuan, images, others, sound, unets, wan
from tests.pipes.oracle import Steps
from tests.pipes.parts import Arguments, Case

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "benchmarks" / "pipelines.json"
PAGE = ROOT / "docs" / "models.md"
CASES = {
    case.name: case for case in (*wan.CASES, *hunyuan.CASES, *others.CASES, *sound.CASES, *images.CASES, *unets.CASES)
}
COLUMNS = (
    "pipeline", "clock", "compute", "steps", "chunks", "tokens", "two prompts", "two videos", "no guidance",
    "other size", "reason",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |"
BY_CHUNK = """policy chunks {
  signal drift = rel_l1(embedded)
  phase warmup for 1 step { compute }
  phase rest { reuse chunk while drift < 1000 }
  layers blocks[*] { keep residual }
}
"""
OF_THE_RUN = (
    *(size for size in SIZES if size != "num_frames"), "num_inference_steps", "output_type", "generator",
    "pyramid_num_inference_steps_list",
)  # fmt: skip
SEVERAL = ("two prompts", "two videos")  # the samples of a call may share a text, which is repeated for each
ROUNDED = 1e-5  # what several samples at once may be from the model
EXACT = 1e-4  # what all tokens computed one by one may be from the model
Row = dict[str, str]


def output(pipe: object, call: Arguments) -> torch.Tensor:
    """What a pipeline's call gives, as one tensor; the noise is the same each time."""
    torch.manual_seed(0)
    accepted = inspect.signature(pipe.__call__).parameters  # type: ignore[operator]
    more = {"generator": torch.Generator().manual_seed(0)} if "generator" in accepted else {}
    result = pipe(**call, **more, return_dict=False)  # type: ignore[operator]
    found = result[0] if isinstance(result, tuple) else result
    parts = [torch.as_tensor(x) for x in (found if isinstance(found, list) else [found])]
    return torch.cat([x.flatten() for x in parts]) if len({x.shape for x in parts}) > 1 else torch.stack(parts)


class _Alone:
    """One pipeline, and what it gives by itself for each way of calling it."""

    def __init__(self, case: Case) -> None:
        self.case, self.pipe = case, case.make()
        self.ways = self._ways() if case.call(1) else {}
        self.plain = {way: self._plainly(way) for way in self.ways}

    def _ways(self) -> dict[str, dict[str, object]]:
        """The ways of calling the pipeline, by the columns of the table."""
        one, accepted = self.case.call(1), inspect.signature(self.pipe.__call__).parameters  # type: ignore[operator]
        several = next((k for k in ("num_videos_per_prompt", "num_images_per_prompt") if k in accepted), None)
        ways = {"compute": one, "two prompts": self.case.call(2), "other size": {**one, **self.case.other}}
        if several is not None:
            ways["two videos"] = {**one, several: 2}
        if self.case.off is not None:
            ways["no guidance"] = {**one, **self.case.off}
        return ways

    def _plainly(self, way: str) -> torch.Tensor | None:
        """What the pipeline gives by itself; None where it takes no such call."""
        try:
            return output(self.pipe, self.ways[way])
        except RAW:
            if way == "compute":
                raise
            return None


class _Runs:
    """Runs of policies on one pipeline."""

    def __init__(self, alone: _Alone) -> None:
        self.pipe, self.ways, self.plain = alone.pipe, alone.ways, alone.plain
        self.call = {k: v for k, v in alone.case.call(1).items() if k not in OF_THE_RUN}
        self.prepared = api.prepare(self.pipe, call=self.call)

    def compiled(self, policy: str, **parameters: float) -> CompiledModel:
        text = Source("test.policy", policy) if "{" in policy else policy
        return api.compile(
            self.pipe, text, backend="eager", captured=self.prepared, call=self.call, **parameters  # type: ignore[arg-type]
        )  # fmt: skip

    def computed(self, told: list[str]) -> Row:
        """The cells of the policy `compute`: the pipeline's own output in every way of calling it, bit for bit."""
        compiled = self.compiled("compute")
        steps = Steps(self.pipe, compiled)
        cells = {name: said(lambda n=name: self._equal(n), told) for name in self.ways}  # type: ignore[misc]
        again = said(lambda: self._equal("compute"), told)
        compiled.undo()
        return {**cells, "compute": cells["compute"] if cells["compute"] != "yes" else again, "clock": steps.found()}

    def _equal(self, way: str) -> str:
        wanted = self.plain[way]
        if wanted is None:
            return "–"
        found = output(self.pipe, self.ways[way])
        said = apart(found, wanted)
        near = way in SEVERAL and found.shape == wanted.shape
        off = float((found - wanted).abs().max() / wanted.abs().max()) if near else 1.0
        return "rounded" if said != "yes" and off < ROUNDED else said

    def reused(self, policy: str, action: str) -> str:
        """ "yes" where a policy does what is wanted, twice alike; "no" where it computes everything."""
        compiled = self.compiled(policy)
        one = output(self.pipe, self.ways["compute"])
        actions = {event.action for event in compiled.events}
        again = apart(output(self.pipe, self.ways["compute"]), one)
        compiled.undo()
        if again != "yes":
            return f"WRONG: the second run is not the first, {again}"
        return "yes" if action in actions else "no"

    def by_tokens(self) -> str:
        """Whether tokens run alone. All of them alone give what the model gives."""
        compiled = self.compiled(TOKENS)
        found = output(self.pipe, self.ways["compute"])
        compiled.undo()
        wanted = self.plain["compute"]
        assert wanted is not None
        off = float((found - wanted).abs().max() / wanted.abs().max())
        if not off < EXACT:
            return f"WRONG: {off:.0e} from the model"
        return "yes" if compiled.runner.engine.uses_rows else "no"


def said(cell: Callable[[], str], told: list[str]) -> str:
    """What a cell says; the code of a refusal, whose words go to `told`; an exception without a code as what it is."""
    try:
        return cell()
    except Failure as failure:
        told.append(words(failure))
        return failure.diagnostics[0].code
    except RAW as error:
        return f"RAW {type(error).__name__}: {short(str(error))}"


def words(failure: Failure) -> str:
    """What a refusal says: its headline and its first cause."""
    what = failure.diagnostics[0]
    return ": ".join([what.message(), *what.notes()[:1]])


def apart(found: torch.Tensor, wanted: torch.Tensor) -> str:
    """ "yes" for equal bits."""
    if found.shape != wanted.shape:
        return f"WRONG: {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    if torch.equal(found, wanted):
        return "yes"
    return f"WRONG: {float((found - wanted).abs().max() / wanted.abs().max()):.0e} apart"


def row(case: Case) -> Row:
    """The cells of one pipeline."""
    empty = dict.fromkeys(COLUMNS, "–") | {"pipeline": case.name}
    try:
        alone = _Alone(case)
    except RAW as error:
        return {**empty, "reason": f"diffusers cannot run it here: {short(str(error))}"}
    told: list[str] = []
    try:
        runs = _Runs(alone)
        cells = runs.computed(told)
    except Failure as failure:
        return {**empty, "clock": failure.diagnostics[0].code, "reason": short(words(failure))}
    except RAW as error:
        return {**empty, "reason": f"RAW {type(error).__name__}: {short(str(error))}"}
    captured = runs.prepared.model
    policies = {
        "steps": said(lambda: runs.reused(STEPWISE, "reuse"), told),
        "chunks": said(lambda: runs.reused(BY_CHUNK, "reuse"), told),
        "tokens": said(runs.by_tokens, told),
    }
    reasons = [captured.opaque.partition(":")[0], *(r.reason.partition(" (")[0] for r in captured.refusals)]
    reason = next((r for r in (*reasons, captured.unbatched, *told) if r), "–")
    return {**empty, **cells, **policies, "reason": short(reason)}


def absent() -> dict[str, Row]:
    """The rows of the pipelines that are not run."""
    why = ((name, f"not run: {reason}") for name, reason in unets.ABSENT.items())
    return {name: dict.fromkeys(COLUMNS, "–") | {"pipeline": name, "reason": reason} for name, reason in why}


def kept() -> dict[str, Row]:
    """The rows that were made, by pipeline."""
    return {} if not KEPT.exists() else {found["pipeline"]: found for found in json.loads(KEPT.read_text())["rows"]}


def keep(rows: Mapping[str, Row]) -> None:
    """Writes the rows, in the order of the cases."""
    ordered = [rows[name] for name in CASES if name in rows]
    KEPT.write_text(json.dumps({"command": "python -m tests.pipeline_table", "rows": ordered}, indent=1) + "\n")


def rendered(rows: Mapping[str, Row]) -> list[str]:
    """The lines of the table."""
    shown = {**{name: rows[name] for name in CASES if name in rows}, **absent()}
    return [f"| {' | '.join(found[column] for column in COLUMNS)} |" for found in shown.values()]


def render() -> None:
    """Puts the kept rows into the page."""
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD) + 2
    stop = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    PAGE.write_text("\n".join([*lines[:start], *rendered(kept()), *lines[stop:]]) + "\n")


def chosen(names: list[str]) -> list[Case]:
    """The cases of these names; without names, those that have no row."""
    if not names:
        return [case for name, case in CASES.items() if name not in kept()]
    fits = [n.removesuffix("*") for n in names]
    return [
        case
        for name, case in CASES.items()
        if any(name.startswith(f) if n.endswith("*") else name == n for n, f in zip(names, fits, strict=True))
    ]


def main(names: list[str]) -> None:
    """Makes rows and renders the page."""
    for case in chosen(names):
        made = row(case)
        keep({**kept(), case.name: made})
        sys.stdout.write(json.dumps(made, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    render()


if __name__ == "__main__":
    main(sys.argv[1:])
