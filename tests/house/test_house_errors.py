"""Every code MCxxxx has one class and one page, and every page a code."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from mccompile import ir
from mccompile.capture.errors import CaptureBug
from mccompile.diagnostics.failure import Failure, InternalError
from mccompile.diagnostics.source import Source
from mccompile.generate import errors as generate
from mccompile.language.load import load_policy
from mccompile.language.walk import rule_expressions, walk
from mccompile.lowering import errors as lowering
from mccompile.lowering.spec import BrokenPart
from mccompile.pipelines import errors as pipelines
from mccompile.runtime import errors as runtime
from tests.house.tree import DOCS, Module, modules, standing

# The hundreds of a code say which part raises it (docs/architecture.md).
PARTS = {
    "01": {"language"},
    "02": {"language"},
    "03": {"policy"},
    "04": {"capture"},
    "05": {"lowering"},
    "06": {"runtime"},
    "07": {"comfyui", "pipelines", "generate", "metrics", "models", "studio", "cli"},
    "08": {"backend", "bundles"},
    "09": {"importing"},
}


def codes(module: Module) -> dict[str, str]:
    """The code of each error class in a module, by class name."""
    found = {}
    for node in ast.walk(module.tree):
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            match line:
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                    found[node.name] = code
                case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(code))):
                    found[node.name] = code
    return found


def classes() -> list[tuple[str, str, str]]:
    """(code, class, part of the house) of every error; those of base classes end in 00 and are never shown."""
    rows = [(code, name, standing(m.name)) for m in modules().values() for name, code in codes(m).items()]
    return sorted(row for row in rows if not row[0].endswith("00"))


def test_a_code_belongs_to_one_class() -> None:
    assert {code: n for code, n in Counter(code for code, _, _ in classes()).items() if n > 1} == {}


def test_codes_are_well_formed_and_lie_beside_what_raises_them() -> None:
    wrong = [row for row in classes() if not re.fullmatch(r"MC0[1-9]\d\d", row[0]) or row[2] not in PARTS[row[0][2:4]]]
    assert wrong == []


def test_every_code_has_its_page_and_every_page_its_code() -> None:
    pages = {path.stem for path in (DOCS / "errors").glob("MC*.md")}
    assert sorted({code for code, _, _ in classes()} ^ pages) == []


def test_a_page_begins_with_its_code() -> None:
    for path in sorted((DOCS / "errors").glob("MC*.md")):
        assert path.read_text().startswith(f"# {path.stem}"), path.name


def test_codes_named_anywhere_exist() -> None:
    known = {code for code, _, _ in classes()}
    texts = [*DOCS.rglob("*.md"), *(m.path for m in modules().values())]
    named = {code for path in texts for code in re.findall(r"\bMC0[1-9](?!00)\d\d\b", path.read_text())}
    assert sorted(named - known) == []


ALL_TOKENS = "in `blocks.0.attn1` every token sees all tokens"
NO_VALUE = "no value that the blocks read depends on the timestep and not on the latents"
PASSES = "its velocity is made of full, prev, uncond passes with caches of their own"
AS_COMPUTED = "keys and values in the model's dtype, residuals in the model's dtype, on the model's device"
SMALL = {"num_frames": 17, "height": 48, "width": 112}
MEETING = """policy example {
  phase all { compute every 3 steps }
  layers blocks[0..4] { compute }
  layers blocks[-3..-1] { keep residual }
}
"""
PARTED = """policy example {
  phase all { compute every 2 steps }
  layers blocks[*].cross { keep output }
}
"""
CAREFUL = """policy careful extends motioncache {
  cache { dtype: model  residual: model  device: model  budget: 2GB }
}
"""
MOTION_2GB = """policy motioncache_2gb extends motioncache {
  cache { budget: 2GB }
}
"""


def written(text: str) -> ir.PolicyIR:
    return load_policy(Source.of_text(text, "example.policy"))


def blocks_of(policy: ir.PolicyIR) -> list[ir.Blocks]:
    return [region.where for region in policy.regions if isinstance(region.where, ir.Blocks)]


def part_of(policy: ir.PolicyIR) -> ir.Sublayers:
    return next(region.where for region in policy.regions if isinstance(region.where, ir.Sublayers))


def window_of(policy: ir.PolicyIR) -> ir.KeyWindow:
    assert policy.cache.window is not None
    return policy.cache.window


def first_source(policy: ir.PolicyIR) -> ir.SourceRef:
    signals = {signal.name: signal for signal in policy.signals}
    rules = (found for phase in policy.phases for found in rule_expressions(phase.rule))
    return next(node for rule in rules for node in walk(rule, signals) if isinstance(node, ir.SourceRef))


SHOWN = (
    lowering.LayersNotFound("dbcache_f8", "SkyReelsV2Transformer3DModel", blocks_of(load_policy("dbcache_f8"))[1], 6),
    lowering.LayersOverlap("example", "SkyReelsV2Transformer3DModel", *blocks_of(written(MEETING)), 6, (3, 4)),
    lowering.SourceNotFound("motioncache", "Model", first_source(load_policy("motioncache")), NO_VALUE),
    lowering.DeniedRefusals(("conv3d_1: convolution mixes tokens",)),
    lowering.BudgetUnmet("careful", written(CAREFUL).cache, 3_120_445_440, AS_COMPUTED),
    lowering.SublayerNotFound(
        "example", "CogVideoXTransformer3DModel", part_of(written(PARTED)), "transformer_blocks.0",
        "has no `cross`, but attn and ffn",
    ),
    lowering.UnknownPass("hoists", "hoist", ()),
    lowering.NoWindow("rolling", "WanTransformer3DModel", window_of(load_policy("rolling")), ALL_TOKENS),
    runtime.NoClock(),
    runtime.UnevenChunks(17, 4),
    runtime.UnknownStep("512.0 is none of the scheduler's 50 timesteps"),
    runtime.NotAPrefix("attention_mask"),
    runtime.ConfigChanged("SkyReelsV2Transformer3DModel", "num_frame_per_block: 5 -> 10"),
    runtime.WindowMoved("attn1.k0", "11+video+7"),
    runtime.NoIncrement(load_policy("motioncache_magi1"), "MagiPipeline", PASSES),
    runtime.OverBudget("motioncache_2gb", written(MOTION_2GB).cache, 2_734_686_208, 2),
    runtime.UnknownTimesteps("teacache", "its tokens are at timesteps from 0 to 999 in one call"),
    runtime.ModelChanged("WanTransformer3DModel", "module `blocks.0.attn1.to_q` has other type"),
    runtime.NoForecast(load_policy("compute"), "at step 4 its weights are inf, 0"),
    runtime.ModelTreated("WanTransformer3DModel", "module `blocks.0`", "hooks"),
    runtime.ModelRemembers("WanTransformer3DModel", "each changes `WanTransformer3DModel.cnt`"),
    runtime.UnderAutocast("WanTransformer3DModel", "cpu"),
    runtime.NoChunks(),
    runtime.TraceMalformed("out/trace.jsonl", 3, "Expecting value: line 1 column 1 (char 0)"),
    pipelines.CopyRefused("WanPipeline"),
    pipelines.SecondTransformer("WanPipeline", "unconditional_transformer"),
    pipelines.NoSchedule("OmniGenPipeline", "it has no `scheduler` with `set_timesteps`"),
    pipelines.NotAPipeline("StableAudioEncoder"),
    pipelines.ProbeFailed("WanImageToVideoPipeline", SMALL, ValueError("provide either `image` or `prompt_embeds`")),
    pipelines.ProcessorsExchanged(
        "StableDiffusion3PAGPipeline", "transformer_blocks.1.attn", "PAGCFGJointAttnProcessor2_0"
    ),
    pipelines.TooFewFrames("SkyReelsV2DiffusionForcingPipeline", 2, 1, 4, 7),
    generate.NothingToResume("out/record", "no run was stopped there"),
    generate.RunDiffers("out/record", ["torch has 4 threads, and had 2"]),
    generate.NotFinite("WanPipeline", 0.125),
    generate.OutputSaved({"out/exact.mp4": "/tmp/mccompile-1f3k/exact.mp4"}, "no space left on device"),
    generate.UnknownModel("skyreels", "there is no such folder"),
)


@pytest.mark.parametrize("error", SHOWN, ids=lambda error: error.code)
def test_a_page_shows_its_error_as_it_is_printed(error: Exception) -> None:
    page = (DOCS / "errors" / f"{error.code}.md").read_text()  # type: ignore[attr-defined]
    assert f"```text\n{error}\n```" in page
    assert page.index("## Refused") < page.index("```text") < page.index("## Mended")


def test_the_pages_of_lowering_and_runtime_are_all_compared() -> None:
    pages = {path.stem for path in (DOCS / "errors").glob("MC0[56]*.md")}
    assert pages == {error.code for error in SHOWN if error.code < "MC07"}


def test_our_own_bugs_are_one_family() -> None:
    """What a command shows is a Failure; a broken invariant is an InternalError, and has no code."""
    assert issubclass(BrokenPart, InternalError)
    assert issubclass(CaptureBug, InternalError)
    assert not issubclass(InternalError, Failure)
