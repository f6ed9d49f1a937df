"""Calibrated sets: the Pareto front of a search, kept per model, video and device, for `--policy auto:30dB`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.diagnostics.failure import PolicyError
from mccompile.generate.placement import Placement
from mccompile.generate.places import prepare_place, put
from mccompile.generate.run import Settings
from mccompile.ir import PolicyIR
from mccompile.policy.text import read, show
from mccompile.studio.explore.emit import said
from mccompile.studio.explore.errors import NotCalibrated
from mccompile.studio.explore.goals import Goal, front
from mccompile.studio.explore.outcome import Outcome
from mccompile.studio.explore.page import settings_of
from mccompile.studio.explore.search import Found

if TYPE_CHECKING:
    from mccompile.studio.explore.job import Session

FOLDER = "MCCOMPILE_CALIBRATED"
"""The environment variable that names the folder of the sets."""

AUTO = "auto:"
MOST_ENTRIES = 12
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a calibrated set holds for: a model, a video without its prompt, a kind of device and a dtype."""

    model: str
    video: Mapping[str, object]
    device: str
    dtype: str

    @classmethod
    def of(cls, model: str, settings: Settings, place: Placement) -> Setting:
        """The setting of a run."""
        video = {k: v for k, v in settings.given().items() if k not in ("prompt", "negative_prompt")}
        name = str(Path(model).resolve()) if Path(model).is_dir() else model
        return cls(name, video, place.device.partition(":")[0], place.dtype)

    @property
    def file(self) -> Path:
        """The file of its set."""
        about = json.dumps(asdict(self), sort_keys=True)
        name = re.sub(r"\W+", "_", Path(self.model).name) or "model"
        return sets_folder() / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"

    @property
    def said(self) -> str:
        """The setting in words."""
        video = ", ".join(f"{k} {v}" for k, v in self.video.items()) or "the model's own video"
        return f"{self.model}, {video}, on {self.device} in {self.dtype}"


@dataclass(frozen=True, slots=True)
class CalibratedEntry:
    """A policy of a set, with the found values as defaults. seen, held_out: what both kinds of prompts showed."""

    policy: PolicyIR
    settings: str
    seen: Outcome
    held_out: Outcome

    def meets(self, goal: Goal) -> bool:
        """Whether the goal was met on the prompts of the search and on those that it did not see."""
        return goal.met(self.seen) and goal.met(self.held_out)


def sets_folder() -> Path:
    """Where sets are kept: MCCOMPILE_CALIBRATED, or the user's own folder for data."""
    own = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(os.environ.get(FOLDER) or Path(own, "mccompile", "calibrated"))


def store_front(session: Session, found: Found) -> str:
    """Keeps the front of a search, each policy measured on the held-out prompts; says where."""
    job = session.job
    trials = front(found.trials)[:MOST_ENTRIES]
    entries = []
    for trial in trials:
        held = session.held_out(trial)
        entries.append(
            {
                "ir": show(_settled(session.policy_of(trial.point), {**job.fixed, **trial.point.values})),
                "settings": f"{trial.point.policy} {settings_of(trial.point)}",
                "seen": asdict(trial.outcome),
                "held_out": asdict(held),
            }
        )
    setting = Setting.of(job.model, job.settings, job.place)
    data = {"format": _FORMAT, "setting": asdict(setting), "about": session.about(), "entries": entries}
    prepare_place(setting.file)
    put(setting.file, lambda draft: draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8"))
    return f"stored {len(entries)} policies for `--policy auto` in {setting.file}"


def pick(goal: Goal, setting: Setting) -> CalibratedEntry:
    """The best stored policy that meets a goal. Raises NotCalibrated (MC0745)."""
    entries = _entries(setting)
    met = [e for e in entries if e.meets(goal)]
    if not met:
        best = max(entries, key=lambda e: min(e.seen.psnr, e.held_out.psnr))
        why = f"the set for {setting.said} has no policy that is `{goal.text}`; the nearest has {said(best.held_out)}"
        raise NotCalibrated(goal.text, why)
    return min(met, key=lambda e: goal.order(e.held_out))


def _entries(setting: Setting) -> list[CalibratedEntry]:
    path = setting.file
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotCalibrated("auto", f"nothing is stored for {setting.said}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise NotCalibrated("auto", f"the set in {path} cannot be read: {str(error).splitlines()[0]}") from None
    found = []
    match data:
        case {"format": format_, "entries": [_, *_] as entries} if format_ == _FORMAT:
            for entry in entries:
                match entry:
                    case {"ir": str(text), "settings": str(words), "seen": dict(seen), "held_out": dict(held)}:
                        try:
                            found.append(CalibratedEntry(read(text), words, Outcome(**seen), Outcome(**held)))
                        except (PolicyError, TypeError):
                            break
                    case _:
                        break
            else:
                return found
    raise NotCalibrated("auto", f"the set in {path} was written by another version, or is damaged")


def _settled(policy: PolicyIR, values: Mapping[str, float]) -> PolicyIR:
    """The policy with the values as its defaults."""
    params = tuple(dataclasses.replace(p, default=float(values.get(p.name, p.default))) for p in policy.params)
    return dataclasses.replace(policy, params=params)
