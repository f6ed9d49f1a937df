"""The server: the page, and what its script asks for. All answers but the page and the results are JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import Failure
from mccompile.diagnostics.pages import UnknownCode, explain_code
from mccompile.diagnostics.source import Source
from mccompile.resources import shipped_policies
from mccompile.studio.serve.asked import PageRequest
from mccompile.studio.serve.checked import MOST_TEXT, bound_of, check_text, problems_of, source_of
from mccompile.studio.serve.desk import Desk, PageRun, folder_of
from mccompile.studio.serve.errors import RequestRefused
from mccompile.studio.serve.guard import REPORT_POLICY, Door, DoorGuard
from mccompile.studio.serve.orders import REPORT, RESULTS, Order, Preset
from mccompile.studio.serve.texts import Texts

MOST_PROMPT = 2_000  # characters
_HERE = Path(__file__).parent
_KINDS = {".js": "text/javascript", ".css": "text/css"}


def application(desk: Desk, folder: Path, results: Path, door: Door) -> Starlette:
    """The page over a desk. folder: of saved policies. results: of the runs, until the server ends."""
    pages = _Pages(desk, Texts(folder.resolve()), results, folder)
    routes = [
        Route("/", pages.page),
        Route("/{name:str}", pages.part),
        Route("/errors/{code:str}", pages.error),
        Route("/api/policy", pages.policy),
        Route("/api/policies", pages.policies),
        Route("/api/check", pages.check, methods=["POST"]),
        Route("/api/save", pages.save, methods=["POST"]),
        Route("/api/runs", pages.runs),
        Route("/api/runs", pages.run, methods=["POST"]),
        Route("/api/runs/{number:int}/cancel", pages.cancel, methods=["POST"]),
        Route("/runs/{number:int}/{file:str}", pages.result),
    ]
    return Starlette(
        routes=routes, middleware=[Middleware(DoorGuard, door=door)], exception_handlers={Failure: _refused}
    )  # fmt: skip


def _refused(request: Request, error: Exception) -> Response:
    """A failure as the page shows it."""
    assert isinstance(error, Failure)
    status = error.status if isinstance(error, RequestRefused) else 422
    return JSONResponse({"error": {"text": str(error).strip(), "codes": _codes(error.diagnostics)}}, status)


@dataclass(frozen=True, slots=True)
class _Pages:
    """The answers. shown: the folder as it was given."""

    desk: Desk
    texts: Texts
    results: Path
    shown: Path

    def page(self, _: Request) -> Response:
        """The page itself."""
        loader = jinja2.FileSystemLoader(_HERE)
        template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        loaded = self.desk.loaded
        return HTMLResponse(
            template.get_template("page.html.j2").render(
                model=loaded.kind, prompt=loaded.prompt, seed=loaded.seed, folder=self.shown,
                presets=[p.name for p in loaded.presets],
                shipped=shipped_policies(), saved=self.texts.saved(), most_text=MOST_TEXT, most_prompt=MOST_PROMPT,
            )
        )  # fmt: skip

    def part(self, request: Request) -> Response:
        """The page's script and its style."""
        name = request.path_params["name"]
        if name not in ("page.js", "page.css"):
            raise RequestRefused(404, f"there is no `{name:.80}`", "open the page itself")
        return FileResponse(_HERE / name, media_type=_KINDS[Path(name).suffix])

    def error(self, request: Request) -> Response:
        """The page of an error code."""
        try:
            return PlainTextResponse(explain_code(request.path_params["code"]))
        except UnknownCode as error:
            raise RequestRefused(404, str(error), "choose a code that an error shows") from None

    def policy(self, request: Request) -> Response:
        """The text of a policy."""
        name, shipped = request.query_params.get("name", ""), request.query_params.get("of") == "shipped"
        return JSONResponse({"name": name, "text": self.texts.read(name, shipped)})

    def policies(self, _: Request) -> Response:
        """The names of the policies that can be opened."""
        return JSONResponse({"shipped": shipped_policies(), "saved": self.texts.saved()})

    async def check(self, request: Request) -> Response:
        """What is wrong with a text, its parameters and its plan."""
        asked = await PageRequest.of(request)
        source, preset = self._source(asked), self._preset(asked)
        found = await run_in_threadpool(check_text, source, asked.settings("values"), preset.grid)
        return JSONResponse(asdict(found))

    async def save(self, request: Request) -> Response:
        """Writes a text into the folder."""
        asked = await PageRequest.of(request)
        name, text, over = asked.get("name", ""), asked.get("text", ""), asked.get("over", False)
        path = await run_in_threadpool(self.texts.save, name, text, over)
        return JSONResponse({"saved": str(self.shown / path.name)})

    async def run(self, request: Request) -> Response:
        """A new run of a text, at the end of the queue. A text with an error is refused at once."""
        asked = await PageRequest.of(request)
        source, values, preset = self._source(asked), asked.settings("values"), self._preset(asked)
        prompt, seed = asked.get("prompt", ""), asked.get("seed", 0)
        if not prompt.strip() or len(prompt) > MOST_PROMPT:
            raise RequestRefused(400, f"the prompt has {len(prompt)} characters", f"write from 1 to {MOST_PROMPT:,}")
        if not 0 <= seed < 2**53:
            raise RequestRefused(400, f"the seed is {seed}", "choose a whole number from 0 to 2^53 - 1")
        await run_in_threadpool(bound_of, source, values)
        run = self.desk.submit(lambda n: Order(source, values, preset, prompt, seed, folder_of(self.results, n)))
        return JSONResponse(self._told(run))

    def runs(self, _: Request) -> Response:
        """Every run that is kept, the latest first."""
        return JSONResponse([self._told(run) for run in reversed(self.desk.runs())])

    async def cancel(self, request: Request) -> Response:
        """Cancels a run."""
        return JSONResponse(self._told(self.desk.cancel(request.path_params["number"])))

    def result(self, request: Request) -> Response:
        """A file of a finished run."""
        number, file = request.path_params["number"], request.path_params["file"]
        run = self.desk.run(number)
        if file not in RESULTS or run.state != "done":
            raise RequestRefused(404, f"run {number} has no `{file:.80}`", "wait until the run is done")
        headers = {"content-security-policy": REPORT_POLICY} if file == REPORT else {}
        return FileResponse(run.order.folder / file, headers=headers)

    def _source(self, asked: PageRequest) -> Source:
        return source_of(asked.get("text", ""), asked.get("name", ""), self.texts.folder)

    def _preset(self, asked: PageRequest) -> Preset:
        name = asked.get("preset", "")
        found = next((p for p in self.desk.loaded.presets if p.name == name), None)
        if found is None:
            raise RequestRefused(400, f"there is no size `{name:.80}`", "choose one from the list")
        return found

    def _told(self, run: PageRun) -> dict[str, object]:
        """A run as JSON."""
        order, outcome = run.order, run.outcome
        problems = problems_of(run.failed, order.source)
        return {
            "number": run.number, "state": run.state, "name": order.source.name, "values": dict(order.values),
            "preset": order.preset.name, "prompt": order.prompt, "seed": order.seed, "before": self.desk.place(run),
            "stopping": run.cancelled_at is not None, "progress": asdict(run.progress),
            "outcome": None if outcome is None else asdict(outcome), "problems": [asdict(p) for p in problems],
        }  # fmt: skip


def _codes(diagnostics: Sequence[Diagnostic]) -> list[str]:
    return [d.code for d in diagnostics]
