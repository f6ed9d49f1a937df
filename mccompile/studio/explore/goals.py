"""Goals in words: `fastest above 30 dB`, `best above 4x`, `fastest above judge 1.0`; and who meets them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mccompile.studio.explore.outcome import Outcome, Trial

Measure = Literal["dB", "x", "judge"]
_WORDS = re.compile(
    r"(?:(?P<wish>fastest|best) above )?(?:(?P<judge>judge )|psnr ?>=? ?)?(?P<number>\d+(?:\.\d+)?) ?(?P<unit>dB|x)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Goal:
    """The fastest policy of at least `least` dB (or share judged right), or the best of at least `least` times speed.

    text: as it was asked for.
    """

    text: str
    measure: Measure
    least: float

    def met(self, outcome: Outcome) -> bool:
        """Whether the outcome has what the goal demands."""
        match self.measure:
            case "dB":
                return outcome.psnr >= self.least
            case "x":
                return outcome.speed_up >= self.least
            case "judge":
                return outcome.judged is not None and outcome.judged >= self.least

    def order(self, outcome: Outcome) -> tuple[float, float]:
        """What is least for the best of those that meet it."""
        by_cost, by_quality = outcome.flops, -outcome.psnr
        return (by_quality, by_cost) if self.measure == "x" else (by_cost, by_quality)

    @property
    def slug(self) -> str:
        """The goal as part of a name, without blanks."""
        wish = "best" if self.measure == "x" else "fastest"
        number = f"{self.least:g}".replace(".", "_")
        what = {"dB": f"{number}_db", "x": f"{number}x", "judge": f"judge_{number}"}[self.measure]
        return f"{wish}_above_{what}"


def parse_goal(text: str) -> Goal:
    """The goal that the words say; `4x` and `psnr >= 30` are short forms. Raises ValueError."""
    found = _WORDS.fullmatch(text.strip())
    unit = (found["unit"] or "").lower() if found else ""
    if found is None or (found["judge"] and unit):
        raise ValueError(
            f"`{text}` is no goal: say `fastest above 30 dB`, `best above 4x` or `fastest above judge 1.0`"
        )
    measure: Measure = "judge" if found["judge"] else "x" if unit == "x" else "dB"
    wish = (found["wish"] or "").lower()
    if wish and (wish == "best") != (measure == "x"):
        raise ValueError(f"`{text}` is no goal: it is the fastest above a quality, or the best above a speed")
    return Goal(text.strip(), measure, float(found["number"]))


def meeting(goal: Goal, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that meet the goal, the best first."""
    return sorted((t for t in trials if goal.met(t.outcome)), key=lambda t: goal.order(t.outcome))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in cost and quality at once, the fastest first; of equals the first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.outcome.flops, -t.outcome.psnr, t.number)):
        if not found or trial.outcome.psnr > found[-1].outcome.psnr:
            found.append(trial)
    return found
