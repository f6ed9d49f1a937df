"""MotionCache on SkyReels-V2, written down once more from the paper's rules, to record traces of settings of our own.

Eager diffusers modules, one loop per rule, nothing of mccompile: the blocks are replaced by one module that decides
and computes. `record` writes a trace in the very format that `mccompile replay` reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import SkyReelsV2Transformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULTS = {
    "seed": 0, "groups": 3, "gs": 2, "h": 6, "w": 8, "nsteps": 12, "ar": 3, "heads": 2, "hd": 12, "layers": 2,
    "thr": 0.4, "warm": 2, "p1": 2, "mode": "global", "norm": "max_rescale", "floor": 0.6, "tc": None, "minr": 0.0,
    "coef": [0, 0, 0, 1.0, 0],
}  # fmt: skip


@dataclass
class Branch:
    """What one guidance branch keeps of each chunk."""

    residual: Tensor
    buffers: list[tuple[Tensor, Tensor]]
    account: dict[int, Tensor] = field(default_factory=dict)
    weight: dict[int, Tensor] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)
    last: dict[int, Tensor] = field(default_factory=dict)
    refreshes: dict[int, int] = field(default_factory=dict)


class Region(nn.Module):
    """All blocks under the rules; stands alone in `model.blocks`. The driver sets branch, active and step."""

    def __init__(self, blocks: nn.ModuleList, settings: dict, positions: int) -> None:
        super().__init__()
        self.blocks, self.s, self.positions = blocks, settings, positions
        self.branch: Branch
        self.active: dict[int, int] = {}
        self.mask: Tensor

    def forward(self, hidden: Tensor, text: Tensor, modulation: Tensor, rotary: tuple[Tensor, Tensor], seen: Tensor):
        tokens = self.s["gs"] * self.positions
        self.mask = torch.zeros(self.s["groups"], tokens, dtype=torch.bool)
        for chunk, step in self.active.items():
            self.mask[chunk] = self.decide(chunk, step, modulation[:, :, chunk * tokens : (chunk + 1) * tokens])
        index = self.mask.flatten().nonzero().flatten()
        out = hidden + self.branch.residual
        if index.numel():
            rows = hidden[:, index]
            for block, kept in zip(self.blocks, self.branch.buffers, strict=True):
                rows = run_block(block, rows, text, modulation[:, :, index], [r[:, index] for r in rotary],
                                 None if seen is None else seen[:, :, index], index, kept)  # fmt: skip
            out[:, index] = rows
            self.branch.residual[:, index] = rows - hidden[:, index]
        for chunk, step in self.active.items():
            self.observe(chunk, step, out[0, chunk * tokens : (chunk + 1) * tokens])
        return out

    def decide(self, chunk: int, step: int, now: Tensor) -> Tensor:
        s, b = self.s, self.branch
        before, b.before[chunk] = b.before.get(chunk), now.clone()
        if step <= s["warm"]:
            b.account[chunk] = torch.zeros(now.size(2))
            return torch.ones(now.size(2), dtype=torch.bool)
        axes = (0, 1, 2, 3) if s["mode"] == "global" else (0, 1, 3)
        moved = (now - before).abs().mean(axes) / (before.abs().mean(axes) + 1e-8)
        drift = sum(c * moved**p for p, c in enumerate(reversed(s["coef"])))
        fine = b.refreshes.get(chunk, 0) >= s["p1"]
        account = b.account[chunk] + drift * (b.weight[chunk] if fine else 1.0)
        fired = account >= s["thr"]
        if s["tc"] is not None:
            voted = fired.view(s["gs"], -1).float().mean(0) > s["tc"]
            fired = voted.repeat(s["gs"])
        if 0 < fired.float().mean() < s["minr"]:
            fired = torch.zeros_like(fired)
        b.account[chunk] = torch.where(fired, 0.0, account)
        return fired

    def observe(self, chunk: int, step: int, out: Tensor) -> None:
        """Refreshes are counted and, once the coarse phase is over, the weights of the next step are taken."""
        s, b = self.s, self.branch
        if step > s["warm"] and self.mask[chunk].any():
            b.refreshes[chunk] = b.refreshes.get(chunk, 0) + 1
        if step < s["warm"] or b.refreshes.get(chunk, 0) < s["p1"]:
            return
        h = out.view(s["gs"], self.positions, -1)
        motion = torch.ones(s["gs"], self.positions)
        for f in range(s["gs"]):
            previous = h[f - 1] if f else b.last.get(chunk - 1)
            if previous is not None:
                motion[f] = (h[f] - previous).abs().mean(1) / (previous.abs().mean(1) + 1e-8)
        if chunk == 0 and s["gs"] > 1:
            motion[0] = motion[1]
        b.last[chunk] = h[-1].clone()
        b.weight[chunk] = self.normalise(motion).flatten()

    def normalise(self, motion: Tensor) -> Tensor:
        low, high = motion.amin(1, keepdim=True), motion.amax(1, keepdim=True)
        match self.s["norm"]:
            case "mean":
                return motion / (motion.mean(1, keepdim=True) + 1e-8)
            case "max":
                return motion / (high + 1e-8)
            case _:
                floor = self.s["floor"]
                return floor + (1 - floor) * (motion - low) / (high - low + 1e-8)


def run_block(block, rows, text, modulation, rotary, seen, index, kept) -> Tensor:
    """One block on selected rows; keys and values of the others as they were kept."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table.unsqueeze(2) + modulation).unbind(1)
    attention, normed = block.attn1, block.norm1(rows) * (1 + scale1) + shift1
    query, key = (
        rotate(norm(linear(normed)).unflatten(2, (attention.heads, -1)), *rotary)
        for norm, linear in ((attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k))
    )
    kept[0][:, index], kept[1][:, index] = key, attention.to_v(normed).unflatten(2, (attention.heads, -1))
    heads_first = (x.transpose(1, 2) for x in (query, *kept))
    attended = F.scaled_dot_product_attention(*heads_first, attn_mask=seen).transpose(1, 2).flatten(2)
    rows = rows + attention.to_out[0](attended) * gate1
    rows = rows + block.attn2(block.norm2(rows), text, None, None)
    return rows + block.ffn(block.norm3(rows) * (1 + scale2) + shift2) * gate2


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)


def schedule(s: dict) -> tuple[Tensor, Tensor]:
    """Timesteps [N, groups] and activity [N, groups] of a staircase: chunk k begins `ar` calls after chunk k - 1."""
    sigma = torch.linspace(1, 0.02, s["nsteps"])
    levels = (1000 * 5 * sigma / (1 + 4 * sigma)).long().tolist()
    steps = s.get("steps", [s["nsteps"]] * s["groups"])  # how many of its steps each chunk takes
    calls = max(s["ar"] * g + n for g, n in enumerate(steps))
    timesteps, active = torch.full((calls, s["groups"]), 999), torch.zeros(calls, s["groups"], dtype=torch.bool)
    for g, n in enumerate(steps):
        begin = s["ar"] * g
        timesteps[begin : begin + n, g] = torch.tensor(levels[:n])
        timesteps[begin + n :, g] = 0
        active[begin : begin + n, g] = True
    return timesteps, active


def tiny_model(s: dict) -> SkyReelsV2Transformer3DModel:
    torch.manual_seed(s["seed"])
    model = SkyReelsV2Transformer3DModel(
        num_attention_heads=s["heads"], attention_head_dim=s["hd"], text_dim=32, freq_dim=64,
        ffn_dim=2 * s["heads"] * s["hd"], num_layers=s["layers"], num_frame_per_block=s["gs"],
    )  # fmt: skip
    for parameter in model.parameters():  # biases and norms too, so that nothing is trivially zero or one
        nn.init.normal_(parameter, std=0.3) if parameter.dim() < 2 else None
    return model.eval().requires_grad_(False)


@torch.no_grad()
def record(path: Path, **settings: object) -> Path:
    """A trace at `path` of a tiny random model under these settings (DEFAULTS for the rest)."""
    s = DEFAULTS | settings
    model = tiny_model(s)
    weights = {f"weights.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    positions, width = s["h"] * s["w"] // 4, s["heads"] * s["hd"]
    region = Region(model.blocks, s, positions)
    model.blocks = nn.ModuleList([region])
    length = s["groups"] * s["gs"] * positions
    empty = torch.zeros(1, length, s["heads"], s["hd"])
    branches = [
        Branch(torch.zeros(1, length, width), [(empty.clone(), empty.clone()) for _ in range(s["layers"])])
        for _ in range(2)
    ]
    contexts = torch.randn(2, 1, 8, 32)
    latents = torch.randn(1, 16, s["groups"] * s["gs"], s["h"], s["w"])
    timesteps, active = schedule(s)
    per_frame = timesteps.repeat_interleave(s["gs"], 1)
    seen: dict[str, list[Tensor]] = {k: [] for k in ("latents", "mask", "out_cond", "out_uncond")}
    for call, now in enumerate(active):
        region.active = {g: int(active[:call, g].sum()) for g in now.nonzero().flatten().tolist()}
        outs, masks = [], []
        for region.branch, context in zip(branches, contexts, strict=True):
            outs.append(model(latents, per_frame[call : call + 1], context, enable_diffusion_forcing=True)[0])
            masks.append(region.mask)
        seen["latents"].append(latents[0].clone())
        seen["mask"].append(torch.stack(masks))
        seen["out_cond"].append(outs[0][0])
        seen["out_uncond"].append(outs[1][0])
        moving = now.repeat_interleave(s["gs"]).view(1, 1, -1, 1, 1)
        latents = latents - 0.1 * moving * (outs[1] + 2.0 * (outs[0] - outs[1]))
    trace = {k: torch.stack(v) for k, v in seen.items()}
    trace |= {"timesteps": per_frame, "update": active, "ctx_cond": contexts[0], "ctx_uncond": contexts[1]}
    save_file(weights | {f"trace.{k}": v.contiguous() for k, v in trace.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(s))
    return path
