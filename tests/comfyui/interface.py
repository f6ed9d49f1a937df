"""What of ComfyUI the node meets, written down from its documented behaviour: patchers, wrappers, samplers, a model.

ComfyUI is no package that can be installed. These classes have its names, its order of calls and its arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional

OUTER, MODEL = "outer_sample", "diffusion_model"
GUIDANCE = 3.0


class WrappersMP:
    OUTER_SAMPLE, DIFFUSION_MODEL = OUTER, MODEL


def patcher_extension() -> ModuleType:
    """The module `comfy.patcher_extension`."""
    made = ModuleType("comfy.patcher_extension")
    made.WrappersMP = WrappersMP  # type: ignore[attr-defined]
    return made


class WrapperExecutor:
    def __init__(self, original: Callable, class_obj: object, wrappers: list[Callable], idx: int = 0) -> None:
        self.original, self.class_obj, self.wrappers, self.idx = original, class_obj, list(wrappers), idx

    def __call__(self, *args: object, **kwargs: object) -> object:
        return WrapperExecutor(self.original, self.class_obj, self.wrappers, self.idx + 1).execute(*args, **kwargs)

    def execute(self, *args: object, **kwargs: object) -> object:
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)


def wrapped(original: Callable, owner: object, kind: str, options: dict) -> WrapperExecutor:
    found = options.get("wrappers", {}).get(kind, {}).values()
    return WrapperExecutor(original, owner, [w for several in found for w in several])


class ModelPatcher:
    """A loaded model with what nodes have hung on it."""

    def __init__(self, model: BaseModel) -> None:
        self.model, self.wrappers, self.options = model, {}, {}

    def clone(self) -> ModelPatcher:
        made = ModelPatcher(self.model)
        made.wrappers = {kind: {key: list(ws) for key, ws in keys.items()} for kind, keys in self.wrappers.items()}
        made.options = copy.copy(self.options)
        return made

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)


class BaseModel(nn.Module):
    """A flow model: what a sampler calls gives the denoised latents."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def apply_model(self, x, sigma, c_crossattn, control=None, transformer_options=None):  # type: ignore[no-untyped-def]
        options = dict(transformer_options or {})
        velocity = self.diffusion_model(
            x, 1000 * sigma, context=c_crossattn, control=control, transformer_options=options
        )
        return x - velocity * sigma.view(-1, 1, 1, 1, 1)


def sample(
    patcher: ModelPatcher, noise: torch.Tensor, sigmas: torch.Tensor, prompts: dict[str, torch.Tensor],
    guided: Callable[[float], bool] = bool, together: bool = True, steps_of: Callable = iter, control: object = None,
) -> torch.Tensor:  # fmt: skip
    """Euler steps under guidance.

    guided: whether there is guidance at a sigma. together: both prompts in one call. steps_of: steps of the sampler.
    """
    options = {**patcher.options, "wrappers": patcher.wrappers}

    def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        both = guided(float(sigma))
        groups = ([[1, 0]] if together else [[0], [1]]) if both else [[0]]
        found = {}
        for group in groups:
            text = torch.cat([prompts["uncond" if g else "cond"].expand(len(x), -1, -1) for g in group])
            more = {"cond_or_uncond": group, "sigmas": sigma.expand(len(x)), "sample_sigmas": sigmas}
            latents, told = torch.cat([x] * len(group)), sigma.expand(len(x) * len(group))
            out = patcher.model.apply_model(latents, told, text, control, {**options, **more})
            found |= dict(zip(group, out.chunk(len(group)), strict=True))
        return found[1] + GUIDANCE * (found[0] - found[1]) if both else found[0]

    def outer_sample(noise: torch.Tensor, latent_image: object, sampler: object, sigmas: torch.Tensor) -> torch.Tensor:
        x = noise
        for now, after in steps_of(_pairs(sigmas)):
            x = x + (x - denoised(x, now)) / now * (after - now)
        return x

    with torch.no_grad():
        return wrapped(outer_sample, None, OUTER, options).execute(noise, None, "euler", sigmas)


def _pairs(sigmas: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return iter([(sigmas[i], sigmas[i + 1]) for i in range(len(sigmas) - 1)])


def flow_sigmas(steps: int, shift: float = 3.0) -> torch.Tensor:
    """From 1 to 0, as flow models are sampled."""
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.cross_q, self.cross_k, self.cross_v = (nn.Linear(width, width) for _ in range(3))
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.modulation = nn.Parameter(torch.randn(1, 6, width) * 0.1)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x, e, context, transformer_options=None):  # type: ignore[no-untyped-def]
        e = (self.modulation + e).chunk(6, dim=1)
        y = torch.addcmul(e[0], self.norm1(x), 1 + e[1])
        x = torch.addcmul(x, self.o(self._attend(self.q(y), self.k(y), self.v(y))), e[2])
        x = x + self._attend(self.cross_q(x), self.cross_k(context), self.cross_v(context))
        return torch.addcmul(x, self.ffn(torch.addcmul(e[3], self.norm2(x), 1 + e[4])), e[5])


class VideoModel(nn.Module):
    """A small model in the form of ComfyUI's Wan: latents [B, 4, F, H, W], timestep [B], context [B, L, 16]."""

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.patch_size, self.width = (1, 2, 2), width
        self.patch_embedding = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.text_embedding, self.time_embedding = nn.Linear(16, width), nn.Linear(16, width)
        self.time_projection = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(layers))
        self.head = nn.Linear(width, 16)

    def forward(self, x, timestep, context, clip_fea=None, transformer_options={}, **kwargs):  # type: ignore[no-untyped-def]  # noqa: B006
        executor = wrapped(self._forward, self, MODEL, transformer_options)
        return executor.execute(x, timestep, context, clip_fea, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, clip_fea=None, transformer_options={}, **kwargs):  # type: ignore[no-untyped-def]  # noqa: B006
        x = self.patch_embedding(x)
        grid = x.shape[2:]
        transformer_options["grid_sizes"] = grid
        x = x.flatten(2).transpose(1, 2)
        angles = timestep[:, None] * torch.exp(-torch.arange(8) / 2)
        e = self.time_embedding(torch.cat([angles.cos(), angles.sin()], dim=1))
        e0, context = self.time_projection(e).unflatten(1, (6, self.width)), self.text_embedding(context)
        for block in self.blocks:
            x = block(x, e0, context, transformer_options=transformer_options)
        x = self.head(x + e[:, None]).unflatten(2, (4, 1, 2, 2)).unflatten(1, grid)
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)
