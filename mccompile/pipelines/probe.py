"""Records how a pipeline calls its transformer, at two sizes, without running the transformer.

The recorded calls tell capture everything that it must know about a model: its arguments, and the sizes that vary.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from mccompile.pipelines.errors import ProbeFailed, ProcessorsExchanged
from mccompile.runtime.settings import PROCESSOR
from mccompile.runtime.stand_in import StandIn, put_transformer, transformer_of, unwrapped

ExampleCall = dict[str, object]  # keyword arguments of a transformer
SIZES = ("height", "width", "num_frames", "frames", "base_num_frames")  # arguments of a pipeline's call: its size
MEDIA = ("image", "last_image", "video")  # arguments of a pipeline's call: what a generation starts from
BLANK = 64  # pixels of a side of a grey image where no size is given
PIPELINES_WANT = (16, 32, 64)  # pipelines refuse heights and widths that are no multiple of one of these


@dataclass(frozen=True, slots=True)
class Declared:
    """A call at a declared size, and how many guidance branches it has; None where an example call stands for it."""

    call: ExampleCall | None
    branches: int


class _Recorded(BaseException):
    """Stops the pipeline at its first call of the transformer; not an Exception, so that no handler takes it."""


class _Recorder(StandIn):
    """Looks like the transformer, keeps the first call and goes no further."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.call: ExampleCall | None = None
        self.branch = ""  # guidance branch of the call, where the pipeline names it
        self.set_up()

    @contextlib.contextmanager
    def cache_context(self, name: str, **_: object) -> Iterator[None]:
        """Notes the name of the branch, as diffusers' pipelines give it."""
        self.branch = name
        yield

    def forward(self, *args: object, **kwargs: object) -> object:
        call = self.arguments_of(*args, **kwargs)
        self.call = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        raise _Recorded


@contextlib.contextmanager
def replaced(pipe: object, transformer: nn.Module) -> Iterator[None]:
    """The pipeline's transformer is `transformer` inside; its own comes back whatever happens."""
    own = _own(pipe)
    put_transformer(pipe, transformer)
    try:
        yield
    finally:
        put_transformer(pipe, own)


def _own(pipe: object) -> nn.Module:
    found = transformer_of(pipe)
    assert found is not None
    return found


def record_calls(
    pipe: object, arguments: Mapping[str, object], larger: bool = False
) -> tuple[ExampleCall, ExampleCall]:
    """The transformer's keyword arguments at two small sizes.

    arguments: further arguments of the pipeline's call that change the transformer's (causal_block_size, ...).
    larger: multiples of the most pixels alone.
    Sizes that the pipeline refuses are tried again in multiples of more pixels, at last with the number of frames that
    the arguments give (other arguments may fix it). Raises ProbeFailed for the first ones.
    """
    others = {k: v for k, v in arguments.items() if k not in SIZES}
    frames = {k: v for k, v in arguments.items() if k == "num_frames"}
    refused: ProbeFailed | None = None
    for held in ({}, frames) if frames else ({},):
        for pixels in PIPELINES_WANT[-1:] if larger else PIPELINES_WANT:
            small, large = probe_sizes(pipe, others, pixels)
            try:
                return _record(pipe, small, {**others, **held})[0], _record(pipe, large, {**others, **held})[0]
            except ProbeFailed as failed:
                refused = refused or failed
    assert refused is not None
    raise refused


def record_at(pipe: object, size: Mapping[str, int], arguments: Mapping[str, object]) -> ExampleCall:
    """The transformer's keyword arguments at one size. Raises ProbeFailed."""
    return _record(pipe, size, arguments)[0]


def record_declared(pipe: object, arguments: Mapping[str, object]) -> Declared:
    """The first call at the size that `arguments` give, or the pipeline's own; and how many branches guidance has.

    Raises ProbeFailed.
    """
    call, branch = _record(pipe, {}, arguments)
    guided = branch == "cond" and bool(getattr(pipe, "do_classifier_free_guidance", False))
    return Declared(call, 2 if guided else 1)


def probe_sizes(
    pipe: object, arguments: Mapping[str, object], pixels: int = PIPELINES_WANT[0]
) -> tuple[dict[str, int], dict[str, int]]:
    """Two sizes at which every derived count is at least 2 and no two counts collide by accident.

    pixels: heights and widths are multiples of it. Frames are 2 and 3 causal blocks (at least 4 latent frames); height
    and width a few patches, all different.
    """
    return _sizes(pipe, arguments, pixels, ((2, 3, 7), (3, 5, 11)))


def unseen_sizes(pipe: object, arguments: Mapping[str, object]) -> tuple[dict[str, int], dict[str, int]]:
    """Two further small sizes, which no capture has seen. Raises ProbeFailed where the pipeline refuses them."""
    refused: ProbeFailed | None = None
    for pixels in PIPELINES_WANT:
        small, large = _sizes(pipe, arguments, pixels, ((2, 4, 6), (3, 6, 4)))
        try:
            _record(pipe, small, arguments)
            _record(pipe, large, arguments)
        except ProbeFailed as failed:
            refused = refused or failed
        else:
            return small, large
    assert refused is not None
    raise refused


def _sizes(
    pipe: object, arguments: Mapping[str, object], pixels: int, counts: tuple[tuple[int, int, int], ...]
) -> tuple[dict[str, int], dict[str, int]]:
    """counts: of each size its causal blocks, and its height and width in patches."""
    config = _own(pipe).config
    assert isinstance(config, Mapping)
    block = arguments.get("causal_block_size") or config.get("num_frame_per_block") or 1
    assert isinstance(block, int)
    temporal = int(getattr(pipe, "vae_scale_factor_temporal", 4))
    spatial = int(getattr(pipe, "vae_scale_factor_spatial", 8))
    patch = config.get("patch_size") or 1
    side = math.lcm(spatial * (max(patch) if isinstance(patch, tuple | list) else int(patch)), pixels)
    frames = (n * block if block > 2 else 3 + 2 * n for n, _, _ in counts)
    sizes = zip(frames, counts, strict=True)
    first, second = (
        {"num_frames": (f - 1) * temporal + 1, "height": h * side, "width": w * side} for f, (_, h, w) in sizes
    )
    return first, second


def _blank(size: Mapping[str, int]) -> dict[str, object]:
    """Grey media for pipelines that do not run without: what they show changes no shape."""
    height, width = size.get("height", BLANK), size.get("width", BLANK)
    image = Image.new("RGB", (width, height), "grey")
    return {"image": image, "video": [image] * size.get("num_frames", 1)}


def arguments_at(pipe: object, size: Mapping[str, int], arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments of a small call of the pipeline at a size, as far as its call has them. `arguments` come last."""
    accepted = inspect.signature(pipe.__call__).parameters  # type: ignore[operator]
    given = {"frames" if k == "num_frames" and k not in accepted else k: v for k, v in size.items()}
    own: dict[str, object] = {"num_inference_steps": 2, "output_type": "latent"}
    own |= {"use_resolution_binning": False, "_auto_resize": False}  # of the size asked for, and of no other
    needed = {k for k, v in accepted.items() if v.default is inspect.Parameter.empty}
    media = {k: v for k, v in _blank(size).items() if k in needed}
    encoded = any(k.startswith("prompt_embeds") and v is not None for k, v in arguments.items())
    words = {} if encoded and "prompt" not in needed else {"prompt": "a video"}  # pipelines refuse a prompt twice
    wanted = {**words, **own, **media, **given, **arguments}
    if {"height", "width"} <= size.keys():
        wanted["max_area"] = size["height"] * size["width"]  # to which FLUX.1 Kontext scales every size
    return {k: v for k, v in wanted.items() if k in accepted}


@contextlib.contextmanager
def _own_processors(pipe: object, model: nn.Module) -> Iterator[None]:
    """The model has its own attention processors again after what is inside, which may stop half way.

    Raises ProcessorsExchanged (MC0728) where it had others.
    """
    before = _processors(model)
    try:
        yield
    finally:
        after = _processors(model)
        exchanged = [name for name, processor in before.items() if after[name] is not processor]
        for name in exchanged:
            model.get_submodule(name).processor = before[name]
        if exchanged:
            raise ProcessorsExchanged(type(pipe).__name__, exchanged[0], type(after[exchanged[0]]).__name__)


def _processors(model: nn.Module) -> dict[str, object]:
    """By the name of each module that has one, its attention processor."""
    modules = ((name, vars(module)) for name, module in model.named_modules())
    found = ((name, own.get(PROCESSOR, own["_modules"].get(PROCESSOR))) for name, own in modules)
    return {name: processor for name, processor in found if processor is not None}


def _record(pipe: object, size: Mapping[str, int], arguments: Mapping[str, object]) -> tuple[ExampleCall, str]:
    """The first call and the guidance branch that it is."""
    recorder = _Recorder(unwrapped(_own(pipe)))
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    try:
        with replaced(pipe, recorder), _own_processors(pipe, recorder.model):
            pipe(**arguments_at(pipe, size, arguments))  # type: ignore[operator]
    except _Recorded:
        pass
    except ProcessorsExchanged:
        raise
    except Exception as error:
        raise ProbeFailed(type(pipe).__name__, dict(size), error) from error
    finally:
        pipe._progress_bar_config = bar  # type: ignore[attr-defined]
    if recorder.call is None:
        raise ProbeFailed(type(pipe).__name__, dict(size), None)
    return recorder.call, recorder.branch
