"""Changes files that the product reads, and reads them: `python -m tests.readers.fuzz [SECONDS]`, or `make fuzz`.

Each input is read as what it says, or refused by a code. Anything else is a fault; its file is kept in out/fuzz.
Where atheris is installed (the extra `fuzz`), it looks for changes that reach new code (guided.py); else the changes
are at random. `python -m tests.readers.fuzz keep` puts what atheris found into tests/readers/corpus.
"""

from __future__ import annotations

import hashlib
import json
import operator
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import fx

from mccompile.backend.graph_text import write_graph
from mccompile.backend.records import write_record
from mccompile.bundles.archive import read_archive, read_json, write_archive
from mccompile.bundles.bundle_errors import AlteredBundle
from mccompile.bundles.graph_reading import read_graph
from mccompile.bundles.identity import Environment, ModelIdentity
from mccompile.diagnostics.failure import Failure
from mccompile.generate.journal import FORMAT, Begun, Journal, read_begun
from mccompile.generate.load import load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.recording import read_recording, rules_of
from mccompile.generate.video import write_contact_sheet, write_mp4
from mccompile.language.load import find_policy, load_policy
from mccompile.metrics import read_clip
from mccompile.models.embedded import EMBEDDED_FOLDER
from mccompile.policy import planner
from mccompile.policy.bind import bind
from mccompile.policy.phases import ChunkState
from mccompile.policy.plan_text import read_plan, show_plan
from mccompile.policy.text import read as read_ir
from mccompile.policy.text import show
from mccompile.runtime.snapshot import BranchFacts, CourseFacts, RequestFacts, StoredTensor
from mccompile.runtime.trace import read_jsonl, write_jsonl
from mccompile.studio.explore.prompts import read_prompts
from mccompile.studio.explore.search import Aim, search
from mccompile.studio.report.page import page_data
from mccompile.studio.report.reading import read_run
from tests.explore.fakes import GRID, FakeRig, study
from tests.report.toy import toy

ODD: tuple[object, ...] = (
    None, True, -1, 0, 7, 0.5, 1e308, float("nan"), float("inf"), 2**70, 10**400, "", "x", "\0", "../x", [], {}, [[]],
    {"a": 1}, "9" * 5000,
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff" * 8, b"{", b"[" * 3000, b"9" * 400, b"\n", "ü".encode(), b"PK\x05\x06", b"-1", b"NaN")
FRAMES = np.linspace(0, 1, 3 * 16 * 16 * 3, dtype=np.float32).reshape(3, 16, 16, 3)


@dataclass(frozen=True)
class Reader:
    """make: writes files that are whole. read: reads them, and whatever of them the product uses then.

    changes: the names of the files that are changed, as a pattern. inputs: how many of them the suite tries.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    changes: str = "*"
    inputs: int = 60

    def files(self, folder: Path) -> list[Path]:
        """Those that are changed, after `make`."""
        return sorted(path for path in folder.rglob(self.changes) if path.is_file())


def record(folder: Path) -> None:
    for name, write in toy().files().items():
        write(folder / name)


def recording(folder: Path) -> None:
    about = {"groups": 2, "gs": 1, "heads": 1, "warm": 1, "p1": 1, "thr": 0.1, "mode": "token", "norm": "max",
             "floor": 0.5, "tc": 0.5, "minr": 0.4, "coef": [1.0, 2.0]}  # fmt: skip
    (folder / "t.json").write_text(json.dumps(about))
    tensors = {f"trace.{name}": torch.zeros(1, 1, 2, 2, 2) for name in ("latents", "out_cond", "out_uncond")}
    tensors |= {"trace.timesteps": torch.zeros(1, 2), "trace.update": torch.ones(1, 2, dtype=torch.uint8)}
    tensors |= {"trace.mask": torch.ones(1, 2, 2, 1, dtype=torch.uint8)}
    tensors |= {f"trace.ctx_{b}": torch.zeros(1, 3, 4) for b in ("cond", "uncond")}
    save_file({**tensors, "weights.patch_embedding.weight": torch.zeros(4, 1, 1, 2, 2)}, folder / "t.safetensors")


def begun() -> Begun:
    made_on = Environment("1", "2", "3", "Linux", "x86", "", ("avx2",))
    model = ModelIdentity("embedded", "", "Model", "float32", "a", "b", ())
    return Begun(FORMAT, ("generate", "--record", "r"), "/here", made_on, (model,), "ir", (("a", 1.0),), 1)


def progress(folder: Path) -> None:
    """A journal with two calls and a state."""
    Journal(folder, begun())
    course = CourseFacts(
        "", ((ChunkState(1, 0, 1, 1),),), ((True,),), ((False,),), ((True,),), ((0,),), ((0, 0, "why"),), (),
        ((0, 0),), (),
    )  # fmt: skip
    kept = StoredTensor(("kept", "0", "x"), (2, 3), (3, 1), True)
    branch = BranchFacts("cond", 0, (course,), ((0, False),), 4, ((1, 2), 3, None), (kept,))
    facts = json.dumps(write_record(RequestFacts(True, (branch,))))
    call = {"row": 0, "branch": "cond", "outputs": 1, "masked": True, "events": []}
    place = folder / "progress"
    for number in range(2):
        tensors = {"0": torch.zeros(2), "mask": torch.ones(1, 1, 4, dtype=torch.bool)}
        save_file(tensors, place / f"call-{number:06}.safetensors", {"call": json.dumps(call)})
    save_file({"000000": torch.zeros(2, 3)}, place / "state-000002.safetensors", {"facts": facts})


def go_on(folder: Path) -> None:
    read_begun(folder)
    journal = Journal(folder, read_begun(folder), resume=True)
    for number in range(2):
        journal.kept(number)


def policy(folder: Path) -> None:
    for number, name in enumerate(("motioncache", "teacache")):
        (folder / f"{number}.policy").write_text(find_policy(name).text)


def plan(folder: Path) -> None:
    made = planner.plan(bind(load_policy("motioncache"), {}), GRID, {}, frozenset())
    (folder / "plan.txt").write_text(show_plan(made))


def graph(folder: Path) -> None:
    """Graph text of a bundle, with an argument of each sort that it may have."""
    made = fx.Graph()
    x, y = made.placeholder("x"), made.get_attr("blocks.0.weight")
    ops = torch.ops.aten
    both = made.call_function(ops.cat.default, ([x, y], 1))
    cut = made.call_function(ops.slice.Tensor, (both, 0, 0, 2**63 - 1))
    cast = made.call_function(ops.to.dtype, (cut, torch.bfloat16), {"copy": True})
    part = made.call_function(operator.getitem, ((cast, cast), slice(None, 1, None)))
    filled = made.call_function(ops.full.default, ([2], float("inf")), {"device": torch.device("cpu")})
    made.output((part, {"filled": filled, "none": None}))
    (folder / "graph.json").write_text(json.dumps(write_graph(made)))


def graph_of(folder: Path) -> None:
    """As `Bundle.attach` reads a graph: what is none makes a ValueError, which it tells as MC0812."""
    path = folder / "graph.json"
    try:
        read_graph(read_json(path, path.name, path.read_bytes()))
    except ValueError as error:
        raise AlteredBundle(path, path.name, str(error)) from error


def model(folder: Path) -> None:
    """The embedded model's folder: its configurations are copies, and the other files are links."""
    for path in sorted(EMBEDDED_FOLDER.rglob("*")):
        copy = folder / path.relative_to(EMBEDDED_FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            copy.write_bytes(path.read_bytes())
        elif path.is_file():
            copy.symlink_to(path)


READERS = {
    "policy": Reader(policy, lambda f: [load_policy(path) for path in sorted(f.glob("*.policy"))]),
    "ir": Reader(lambda f: (f / "ir.txt").write_text(show(load_policy("motioncache"))),
                 lambda f: read_ir(decoded(f / "ir.txt"))),
    "plan": Reader(plan, lambda f: read_plan(decoded(f / "plan.txt"))),
    "graph": Reader(graph, graph_of),
    "model": Reader(model, lambda f: load_pipeline(f, Placement.of("cpu", None, False)), "*.json", 6),
    "study": Reader(lambda f: search(study(f), FakeRig(), Aim(("p",), 2, "random", ()), lambda trial: None),
                    lambda f: study(f).trials(), inputs=8),
    "bundle": Reader(lambda f: write_archive(f / "b.mcc", {"policy": "x"}, {"captured.json": b"{}"}),
                     lambda f: read_archive(f / "b.mcc")),
    "trace": Reader(lambda f: write_jsonl(f / "t.jsonl", toy().events[:4]), lambda f: read_jsonl(f / "t.jsonl")),
    "record": Reader(record, lambda f: page_data(read_run(f))),
    "recording": Reader(recording, lambda f: rules_of(read_recording(f / "t.safetensors"))),
    "progress": Reader(progress, go_on),
    "video": Reader(lambda f: write_mp4(f / "v.mp4", FRAMES, 8), lambda f: read_clip(f / "v.mp4")),
    "frames": Reader(lambda f: write_contact_sheet(f / "1.png", {"x": FRAMES}), read_clip),
    "prompts": Reader(lambda f: (f / "p.txt").write_text("one\ntwo\n"), lambda f: read_prompts(f / "p.txt", None)),
}  # fmt: skip

FOREIGN = ("video", "frames", "study")
CORPUS = Path(__file__).parent / "corpus"
LOGS = Path("out", "fuzz")
LARGEST_KEPT, MOST_KEPT = 2048, 40


def decoded(path: Path) -> str:
    """Text that the product has from JSON, where every byte is some character."""
    return path.read_bytes().decode("latin-1")


def places(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from places(part, (*at, key))


def of_json(text: bytes, chance: random.Random) -> bytes:
    """JSON with one of its values exchanged, left out or doubled; lines of JSON with one of them changed so."""
    lines = text.splitlines()
    number = chance.randrange(len(lines)) if lines and lines[0].endswith(b"}") else 0
    value = json.loads(lines[number] if len(lines) > 1 and lines[0].endswith(b"}") else text)
    *path, last = chance.choice(list(places(value)))
    owner = value
    for key in path:
        owner = owner[key]
    match chance.randrange(4):
        case 0:
            del owner[last]
        case 1 if isinstance(owner, list):
            owner.append(owner[last])
        case _:
            owner[last] = chance.choice(ODD)
    made = json.dumps(value).encode()
    return b"\n".join([*lines[:number], made, *lines[number + 1 :]]) if len(lines) > 1 and number < len(lines) else made


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    at, until = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[until:]
        case 2:
            return data[:until] + data[at:]
        case 3:
            return data[:at] + chance.choice(BYTES) + data[at:]
        case 4:
            return data[:at] + chance.choice(BYTES) + data[until:]
        case _:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def changed(path: Path, data: bytes, chance: random.Random) -> bytes:
    if path.suffix in (".json", ".jsonl") and chance.random() < 0.6 and data.strip() not in (b"", b"{}"):
        return of_json(data, chance)
    return of_bytes(data, chance)


def fuzz(name: str, folder: Path, until: Callable[[int], bool], seed: int = 0) -> tuple[Counter[str], list[Path]]:
    """How often each outcome was seen while `until(count)` is false, and the inputs that made a raw error."""
    reader, chance, seen, faults = READERS[name], random.Random(seed), Counter[str](), []
    reader.make(folder)
    whole = {path: path.read_bytes() for path in reader.files(folder)}
    count = 0
    while not until(count):
        count += 1
        path = chance.choice(sorted(whole))
        path.write_bytes(changed(path, whole[path], chance))
        outcome = read(reader, folder)
        seen[outcome] += 1
        if outcome.startswith("raw"):
            kept = Path("out", "fuzz", f"{name}-{len(faults)}-{path.name}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(path.read_bytes())
            faults.append(kept)
        path.write_bytes(whole[path])
    return seen, faults


def read(reader: Reader, folder: Path) -> str:
    """`read`, the code of a refusal, or `raw` and what was raised."""
    try:
        reader.read(folder)
    except Failure as error:
        return error.diagnostics[0].code
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
            ValueError, SyntaxError, EOFError) as error:  # fmt: skip
        return f"raw {type(error).__name__}: {str(error)[:100]}"
    return "read"


def put(reader: Reader, folder: Path, data: bytes) -> Path:
    """Writes an input of the corpus: its first byte says which file is changed, and the rest is that file."""
    files = reader.files(folder)
    path = files[data[0] % len(files)]
    path.write_bytes(data[1:])
    return path


def keep(name: str) -> int:
    """Puts into the corpus the smallest input of out/fuzz for each thing that the reader says. Returns their number."""
    reader, smallest = READERS[name], dict[str, bytes]()
    found = [
        data for place in (CORPUS / name, Path("out", "fuzz", name)) for data in map(Path.read_bytes, place.glob("*"))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reader.make(folder)
        for data in sorted((data for data in found if 0 < len(data) <= LARGEST_KEPT), key=len):
            path = reader.files(folder)[data[0] % len(reader.files(folder))]
            whole = path.read_bytes()
            put(reader, folder, data)
            said = "read"
            try:
                reader.read(folder)
            except Failure as error:
                said = re.sub(r"\S*[\d/]\S*", "", str(error.diagnostics[0]).partition("--> ")[0])[:150]
            smallest.setdefault(said, data)
            path.write_bytes(whole)
    for data in list(smallest.values())[:MOST_KEPT]:
        place_of = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
        place_of.parent.mkdir(parents=True, exist_ok=True)
        place_of.write_bytes(data)
    return len(smallest)


def at_random(name: str, seconds: float) -> int:
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as place:
        seen, faults = fuzz(name, Path(place), lambda count: time.monotonic() > end)
    told = ", ".join(f"{n} {what}" for what, n in seen.most_common())
    sys.stdout.write(f"{name}: {sum(seen.values())} inputs: {told}\n")
    sys.stdout.flush()
    return len(faults)


def guided(name: str, seconds: float) -> int:
    """In a process of its own, which libFuzzer ends."""
    command = [sys.executable, "-m", "tests.readers.guided", name, str(round(seconds))]
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("wb") as log:
        wrong = subprocess.run(command, check=False, stdout=log, stderr=log).returncode != 0
    sys.stdout.write(f"{name}: {'a fault' if wrong else 'no fault'}, see {LOGS / name}.log\n")
    return int(wrong)


def main(seconds: float, names: Sequence[str]) -> int:
    """Readers whose code is not ours (videos, pictures, SQLite) give atheris nothing to follow."""
    led = find_spec("atheris") is not None
    wrong = sum((guided if led and name not in FOREIGN else at_random)(name, seconds) for name in names)
    return int(wrong > 0)


if __name__ == "__main__":
    asked, chosen = sys.argv[1] if len(sys.argv) > 1 else "60", sys.argv[2:] or list(READERS)
    if asked == "keep":
        sys.stdout.writelines(f"{name}: {keep(name)}\n" for name in chosen)
    else:
        sys.exit(main(float(asked), chosen))
