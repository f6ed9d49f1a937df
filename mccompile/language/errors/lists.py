"""MC0281 and MC0282: lists that a function cannot use, and values that it cannot read."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Help


@dataclass(frozen=True, slots=True)
class InvalidList(Diagnostic):
    """Numbers in a list that together mean nothing to its function."""

    code = "MC0281"
    title = "`{function}` cannot use this list"
    label = "{why}"
    function: str
    why: str

    def helps(self) -> tuple[Help, ...]:
        forms = {
            "pick": "`pick(x, [0.03, 0.05], [12, 10, 8])` is 12 below 0.03, 10 below 0.05 and 8 from there on",
            "roi": "the left half of the frame is `roi(rows = [0%, 100%], columns = [0%, 50%])`",
            "table": "the errors by age are `table([0, 0.1, 0.2], at = step - kept(step))`",
        }
        return (Help(forms[self.function]),)


@dataclass(frozen=True, slots=True)
class UnreadableValue(Diagnostic):
    """A value that a function over steps or around tokens has no access to. named: a signal of it would do."""

    code = "MC0282"
    title = "`{function}` cannot read this value"
    label = "{why}"
    function: str
    why: str
    named: bool

    def helps(self) -> tuple[Help, ...]:
        if not self.named:
            return ()
        return (Help(f"make a `signal` of the part with `block_output`, and write `{self.function}` of that signal"),)
