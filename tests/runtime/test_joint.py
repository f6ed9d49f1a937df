"""The memory of two guidance branches side by side: each keeps its half, and rows of the follower can be put back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.types import Along, BufferSpec, Port, SampleCount, Tangled
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.runtime.joint import Joint
from mccompile.runtime.rows import KeyChoices, Rows
from mccompile.runtime.store import BranchStore, Once

BOUND = bind(load_policy("teacache"), {})
SAMPLES, TOKENS = 2, 4  # of each branch


def stack(first: float, tokens: int = TOKENS, samples: int = SAMPLES) -> torch.Tensor:
    return first + torch.arange(float(samples * tokens * 3)).view(samples, tokens, 3)


def ports(batch: object = Along(0)) -> dict[str, Port]:
    return {
        "text": Port("text", None, "", frozenset({"text"}), batch),  # type: ignore[arg-type]
        "x": Port("x", 1, "video", frozenset(), Along(0)), "time": Port("time", None, "", frozenset(), Along(0)),
    }  # fmt: skip


class Blocks:
    """What `Joint` asks of the blocks of a model. samples: along the first axis of a buffer of both branches."""

    def __init__(self, samples: int = 2 * SAMPLES) -> None:
        self.samples = samples

    def new_buffers(self, block: int, env: object, shared: object) -> tuple[torch.Tensor, ...]:
        return torch.zeros(self.samples, TOKENS, 3), torch.zeros(self.samples, 1, 3)

    def lasting(self, block: int) -> tuple[str, ...]:
        return ("text",)


def captured(batch: object = Along(0)) -> Any:
    spec = (BufferSpec("k", 1, "video"), BufferSpec("v", 1, "1"))
    found = ports(batch)
    return SimpleNamespace(
        shared=[found["text"]], sources=[], streams=[found["x"], found["time"]], samples=("latent",),
        kinds=[SimpleNamespace(buffers=spec)], blocks=[SimpleNamespace(kind=0)],
    )  # fmt: skip


class Values:
    def of_shapes(self, inputs: dict[str, torch.Tensor | int]) -> dict[str, object]:
        """The sizes are those of both branches, and what is no batch is as it was."""
        latent = inputs["latent"]
        assert isinstance(latent, torch.Tensor)
        assert (latent.shape, inputs["size"]) == ((2 * SAMPLES, 5), 7)
        return {"table": "of both"}


def step(text: object, blocks: Blocks | None = None, batch: object = Along(0), fill: float = 0.0) -> Any:
    """A call of one branch, whose store keeps a buffer, a residual and what a block has made of the prompt."""
    store = BranchStore.empty({"": BOUND}, SAMPLES, 1)
    store.memory.buffers[0] = stack(fill), stack(fill + 50, 1)
    store.memory.kept[0, "x"] = stack(fill + 100)
    store.memory.once[0] = Once((text,), (stack(fill + 200),))
    store.memory.merged[0, "x"] = torch.zeros(1)
    store.memory.chosen[0] = (stack(fill + 300, 2),)
    engine = SimpleNamespace(
        lowered=SimpleNamespace(captured=captured(batch)), values=Values(), blocks=blocks or Blocks(),
        entry=lambda shared: {"x": shared["text"]},
    )  # fmt: skip
    inputs = {"latent": torch.zeros(SAMPLES, 5), "size": 7}
    return SimpleNamespace(engine=engine, store=store, inputs=inputs, shared={"text": text, "table": "of one"})


def combined() -> tuple[Joint, Any, Any, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    joint, one, two = Joint(SAMPLES), step(stack(0), fill=1000.0), step(stack(500), fill=2000.0)
    found = joint.combine(one, two)
    assert found is not None
    return joint, one, two, found


def test_values_of_both_lie_side_by_side_and_are_joined_once() -> None:
    joint, one, two, (shared, entry) = combined()
    assert shared["table"] == "of both"
    assert torch.equal(shared["text"], torch.cat([stack(0), stack(500)]))
    assert entry["x"] is shared["text"]
    again = joint.combine(one, two)
    assert again is not None
    assert again[0]["text"] is shared["text"]
    other = step(stack(500), fill=2000.0)
    other.store = two.store
    for first, second in ((one, other), (other, two)):
        fresh = joint.combine(first, second)
        assert fresh is not None
        assert torch.equal(fresh[0]["text"], torch.cat([first.shared["text"], second.shared["text"]]))


def test_what_each_branch_keeps_is_a_view_of_what_both_keep() -> None:
    joint, one, two, _ = combined()
    for place, of in enumerate((one, two)):
        memory, fill = of.store.memory, 1000.0 * (place + 1)
        half = slice(place * SAMPLES, (place + 1) * SAMPLES)
        for both, own, was in (
            (joint.memory.buffers[0][0], memory.buffers[0][0], stack(fill)),
            (joint.memory.buffers[0][1], memory.buffers[0][1], stack(fill + 50, 1)),
            (joint.memory.chosen[0][0], memory.chosen[0][0], stack(fill + 300, 2)),
            (joint.memory.kept[0, "x"], memory.kept[0, "x"], stack(fill + 100)),
        ):
            assert torch.equal(own, was)
            both[half] += 1
            assert torch.equal(own, was + 1)
        assert not memory.merged
    assert torch.equal(joint.memory.once[0].values[0], torch.cat([stack(1200), stack(2200)]))
    kept = joint.memory.buffers[0], joint.memory.kept[0, "x"], joint.memory.once[0], joint.memory.chosen[0]
    joint.combine(one, two)
    now = joint.memory.buffers[0], joint.memory.kept[0, "x"], joint.memory.once[0], joint.memory.chosen[0]
    assert all(a is b for a, b in zip(kept, now, strict=True))


def test_a_half_that_a_branch_has_replaced_is_joined_anew() -> None:
    for which in (0, 1):
        joint, *steps, _ = combined()
        memory = steps[which].store.memory
        memory.kept[0, "x"] = stack(7)
        memory.buffers[0], memory.chosen[0] = (stack(8), stack(9, 1)), (stack(10, 2),)
        assert joint.combine(*steps) is not None
        half = slice(which * SAMPLES, (which + 1) * SAMPLES)
        assert torch.equal(joint.memory.kept[0, "x"][half], stack(7))
        assert torch.equal(joint.memory.buffers[0][1][half], stack(9, 1))
        assert torch.equal(joint.memory.chosen[0][0][half], stack(10, 2))


def test_what_was_made_of_another_prompt_is_not_joined() -> None:
    for which in (0, 1):
        joint, one, two = Joint(SAMPLES), step(stack(0)), step(stack(500))
        for of in (one, two):
            of.store.memory.once[1] = of.store.memory.once[0]
        (one, two)[which].store.memory.once[0] = Once((stack(1),), (stack(2),))
        assert joint.combine(one, two) is not None
        assert joint.memory.once.keys() == {1}
    joint, one, two = Joint(SAMPLES), step(stack(0)), step(stack(500))
    two.store.memory.once.clear()
    assert joint.combine(one, two) is not None
    assert not joint.memory.once


@pytest.mark.parametrize("place", ["buffers", "kept", "chosen"])
def test_branches_of_which_one_has_kept_less_are_run_apart(place: str) -> None:
    for which in (0, 1):
        steps = step(stack(0)), step(stack(500))
        getattr(steps[which].store.memory, place).clear()
        assert Joint(SAMPLES).combine(*steps) is None


def test_buffers_whose_samples_do_not_lie_first_are_not_joined() -> None:
    one, two = step(stack(0), Blocks(samples=SAMPLES)), step(stack(500))
    assert Joint(SAMPLES).combine(one, two) is None
    one, two = step(stack(0), Blocks(samples=3 * SAMPLES)), step(stack(500))
    two.store.memory.buffers[0] = stack(1, samples=2 * SAMPLES), stack(1, 1, samples=2 * SAMPLES)
    assert Joint(SAMPLES).combine(one, two) is None


def test_values_that_are_no_batch_must_be_the_same() -> None:
    text, equal = stack(0), stack(0)
    for batch, first, second, joined in (
        (None, text, text, True), (None, text, equal, False), (None, 3, 3, True), (None, 3, 4, False),
        (SampleCount(None), 3, 3, False), (Tangled("s0"), text, text, False),
    ):  # fmt: skip
        one, two = step(first, batch=batch), step(second, batch=batch)
        found = Joint(SAMPLES).combine(one, two)
        assert (found is not None) is joined
        if found is not None:
            assert found[0]["text"] is first


def rows(*places: int, sample: int | None = None, anew: bool | None = True) -> Rows:
    """anew: some keys are picked now; None: none ever are."""
    index, choice = torch.tensor(places), None if anew is None else KeyChoices(torch.zeros(0), 1, anew)
    return Rows(
        sample, 2 * SAMPLES, False, index, {}, {}, {}, {"video": index, "1": torch.tensor([0])}, {}, None, choice
    )


@pytest.mark.parametrize("sample", [None, *range(2 * SAMPLES)])
def test_rows_of_the_follower_are_put_back(sample: int | None) -> None:
    """A run of all samples, or of one of them: what it replaces of the leader stays replaced."""
    joint, _, two, _ = combined()
    region: Any = SimpleNamespace(first=0, last=0, pairs=(("", "x"), ("", "time")))
    joint.memory.kept[0, "time"] = torch.arange(4.0)[:, None]
    kept = [*joint.memory.buffers[0], joint.memory.kept[0, "x"], joint.memory.kept[0, "time"], *joint.memory.chosen[0]]
    before = [tensor.clone() for tensor in kept]
    joint.save(captured(), 0, region, rows(1, 3, sample=sample))
    samples = slice(None) if sample is None else slice(sample, sample + 1)
    for tensor, at in zip(kept, ([1, 3], [0], [1, 3], None, None), strict=True):
        tensor[samples, at if at is not None else slice(None)] = -1.0
    joint.taken().back()
    own = [sample] if sample is not None and sample < SAMPLES else [] if sample is not None else [0, 1]
    for tensor, was, at in zip(kept, before, ([1, 3], [0], [1, 3], [0], [0, 1]), strict=True):
        expected = was.clone()
        for one in own:
            expected[one, at] = -1.0
        assert torch.equal(tensor, expected)
    assert torch.equal(two.store.memory.kept[0, "x"], before[2][SAMPLES:])
    assert not joint.taken().saved


@pytest.mark.parametrize("anew", [False, None])
def test_picks_that_a_run_only_reads_are_not_saved(anew: bool | None) -> None:
    joint, *_ = combined()
    region: Any = SimpleNamespace(first=0, last=0, pairs=())
    joint.save(captured(), 0, region, rows(1, anew=anew))
    assert len(joint.taken().saved) == 2


def test_rows_that_were_saved_twice_are_as_they_were_before_the_first_time() -> None:
    joint, *_ = combined()
    region: Any = SimpleNamespace(first=0, last=0, pairs=(("", "x"),))
    kept = joint.memory.kept[0, "x"]
    before = kept.clone()
    for value in (-1.0, -2.0):
        joint.save(captured(), 0, region, rows(1))
        kept[:, 1] = value
    joint.taken().back()
    assert torch.equal(kept[SAMPLES:], before[SAMPLES:])


def test_residuals_that_a_run_has_made_anew_are_published_to_each_branch() -> None:
    joint, one, two, _ = combined()
    own = one.store.memory.kept[0, "x"]
    joint.publish(one.store, 0)
    assert one.store.memory.kept[0, "x"] is own  # it lies there already
    joint.memory.kept[0, "x"] = fresh = torch.cat([stack(1), stack(2)])
    joint.publish(one.store, 0)
    joint.taken().keep(two.store)
    assert torch.equal(one.store.memory.kept[0, "x"], stack(1))
    assert torch.equal(two.store.memory.kept[0, "x"], stack(2))
    fresh += 1
    assert torch.equal(two.store.memory.kept[0, "x"], stack(3))
    halves = joint.halves({"x": fresh})
    assert [torch.equal(half["x"], stack(n)) for half, n in zip(halves, (2, 3), strict=True)] == [True, True]
    assert joint.combine(one, two) is not None
    assert joint.memory.kept[0, "x"] is fresh
