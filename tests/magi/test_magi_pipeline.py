"""The pipeline from its folder: text, image and video to video on the CPU, and what its options promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mccompile.models.magi import MagiCall, MagiConfigError, MagiInputError, MagiPipeline, MagiScheduler
from mccompile.models.magi.cache import CleanChunkCache
from tests.magi.tiny import GATED, PROMPT, SETTINGS, tiny_pipeline
from tests.magi_fixture import relative

SIZE = {"height": 48, "width": 64}
SHORT = replace(SETTINGS, num_inference_steps=4, window_size=2, noise2clean_kvrange=(3, 2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("magi")
    tiny_pipeline(SHORT).save_pretrained(path)
    return path


@pytest.fixture
def pipe(folder: Path) -> MagiPipeline:
    pipe = MagiPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_folder_holds_the_whole_pipeline(folder: Path, pipe: MagiPipeline) -> None:
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {
        "transformer", "scheduler", "tokenizer", "text_encoder", "vae", "special_tokens",
    }  # fmt: skip
    assert pipe.scheduler.settings == SHORT
    original = tiny_pipeline(SHORT)
    for mine, given in ((pipe.transformer, original.transformer), (pipe.text_encoder, original.text_encoder)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), given.parameters(), strict=True))
        for weight in mine.parameters():  # weights in a file lie at odd addresses, and sums follow the alignment
            weight.data = weight.data.clone()
    ours = pipe(PROMPT, num_frames=16, generator=seeded(), output_type="latent", **SIZE).frames
    theirs = original(PROMPT, num_frames=16, generator=seeded(), output_type="latent", **SIZE).frames
    assert torch.equal(ours, theirs)


def test_text_to_video(pipe: MagiPipeline) -> None:
    video = pipe(PROMPT, num_frames=12, generator=seeded(), **SIZE).frames
    # Whole chunks: 3 latent frames are 2 chunks of 2, 4 pixels' frames each.
    assert video.shape == (1, 16, 48, 64, 3)
    assert video.min() >= 0
    assert video.max() <= 1
    assert video.std() > 0


@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_other_outputs_are_the_same_video(pipe: MagiPipeline, output_type: str) -> None:
    given = {"num_frames": 8, "output_type": output_type, **SIZE}
    frames = pipe(PROMPT, generator=seeded(), **given, return_dict=False)[0]
    video = pipe(PROMPT, generator=seeded(), **{**given, "output_type": "np"}).frames
    if output_type == "pil":
        assert len(frames[0]) == 8
        np.testing.assert_allclose(np.asarray(frames[0][3]), video[0, 3] * 255, atol=1)
    else:
        np.testing.assert_allclose(frames[0, 3].permute(1, 2, 0).numpy(), video[0, 3])


def test_image_to_video_starts_from_the_image(pipe: MagiPipeline) -> None:
    given = {"num_frames": 8, "output_type": "latent", **SIZE}
    image, other = picture(), picture(1)
    first = pipe(PROMPT, image=image, generator=seeded(), **given).frames
    # One latent frame more than the frames asked for: 3 of 2 chunks.
    assert first.shape[2] == 4
    assert relative(pipe(PROMPT, image=other, generator=seeded(), **given).frames, first) > 1e-2
    array = np.asarray(image)
    assert torch.equal(pipe(PROMPT, image=array, generator=seeded(), **given).frames, first)
    prefix = pipe.encode_video(image, **SIZE)
    assert prefix.shape == (1, 16, 1, 6, 8)
    assert torch.equal(pipe(PROMPT, prefix_latents=prefix, generator=seeded(), **given).frames, first)


def test_the_image_is_what_the_first_frame_departs_from(pipe: MagiPipeline) -> None:
    """The first latent frame is put back before every call, so that only the last step moves it."""
    prefix = torch.full((1, 16, 1, 6, 8), 3.0)
    seen: list[Tensor] = []
    real = pipe.transformer.forward

    def forward(*args: object, **kwargs: Tensor) -> object:
        if pipe.current_chunks[0] == 0:
            seen.append(kwargs["hidden_states"][:, :, :1])
        return real(*args, **kwargs)

    pipe.transformer.forward = forward
    pipe(PROMPT, prefix_latents=prefix, num_frames=4, output_type="latent", generator=seeded(), **SIZE)
    assert len(seen) > 4
    assert all(torch.equal(x, prefix) for x in seen)


def test_video_to_video_continues_and_leaves_the_prefix_out(pipe: MagiPipeline) -> None:
    given = {"num_frames": 8, "output_type": "latent", **SIZE}
    frames = [picture(i) for i in range(20)]
    result = pipe(PROMPT, video=frames, generator=seeded(), **given).frames
    # 5 latent frames given, 2 asked for: 4 chunks, of which 8 - 5 frames are new.
    assert result.shape[2] == 3
    changed = [picture(9), *frames[1:]]
    assert relative(pipe(PROMPT, video=changed, generator=seeded(), **given).frames, result) > 1e-4
    longer = [picture(i) for i in range(40)]
    assert pipe.encode_video(longer[:32], **SIZE).shape[2] == 8
    calls = pipe.schedule(num_frames=8, prefix_frames=5)
    assert calls[0].is_prefix
    assert calls[0].clean_chunks == (0, 1)


@pytest.mark.parametrize("distilled", [False, True], ids=["base", "distilled"])
def test_distilled_and_base_use_the_passes_they_need(distilled: bool) -> None:
    pipe = tiny_pipeline(replace(SHORT, distilled=distilled))
    seen: list[tuple[MagiCall, str, tuple[int, ...]]] = []
    context = pipe.transformer.cache_context

    def cache_context(name: str) -> object:
        assert pipe.current_call is not None
        seen.append((pipe.current_call, name, pipe.current_chunks))
        return context(name)

    pipe.transformer.cache_context = cache_context
    pipe(PROMPT, num_frames=24, output_type="latent", generator=seeded(), skip_unused_guidance=False, **SIZE)
    for call in pipe.schedule(24):
        passes = [(name, chunks) for c, name, chunks in seen if c == call]
        if distilled:
            assert passes == [("full", (*call.chunks, *call.active_chunks[: int(call.nearly_clean)]))]
        else:
            alone = [("uncond", (chunk,)) for chunk in call.active_chunks]
            assert passes == [("full", call.chunks), ("prev", call.chunks), *alone]
    assert pipe.current_chunks == ()


def test_leaving_out_unused_passes_changes_no_bit(pipe: MagiPipeline) -> None:
    given = {"num_frames": 24, "output_type": "latent", **SIZE}
    latents, passes = [], []
    for skip in (True, False):
        count = 0
        real = pipe.transformer.forward

        def forward(*args: object, real: object = real, **kwargs: object) -> object:
            nonlocal count
            count += 1
            return real(*args, **kwargs)

        pipe.transformer.forward = forward
        latents.append(pipe(PROMPT, generator=seeded(), skip_unused_guidance=skip, **given).frames)
        pipe.transformer.forward = real
        passes.append(count)
    assert torch.equal(*latents)
    calls = pipe.schedule(24)
    assert passes[0] < passes[1] == sum(2 + len(call.active_chunks) for call in calls)


def test_forgotten_chunks_were_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of one chunk reaches back further at the start of a chunk than at its end."""
    settings = replace(SETTINGS, num_inference_steps=4, window_size=1, noise2clean_kvrange=(3, 1))
    pipe, given = tiny_pipeline(settings), {"num_frames": 48, "output_type": "latent", **SIZE}
    forgetting = pipe(PROMPT, generator=seeded(), **given).frames
    monkeypatch.setattr(CleanChunkCache, "drop_before", lambda self, chunk: None)
    assert torch.equal(pipe(PROMPT, generator=seeded(), **given).frames, forgetting)


def test_callbacks_see_and_change(pipe: MagiPipeline) -> None:
    steps: list[tuple[int, tuple[float, ...]]] = []
    chunks: list[tuple[int, Tensor]] = []
    given = {"num_frames": 16, "output_type": "latent", **SIZE}

    def on_step(p: MagiPipeline, index: int, times: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        assert p.current_call is not None
        assert p.current_call.index == index
        steps.append((index, tuple(times.tolist())))
        return {"latents": kept["latents"]}

    result = pipe(
        PROMPT,
        generator=seeded(),
        callback_on_step_end=on_step,
        callback_on_chunk_end=lambda p, chunk, x: chunks.append((chunk, x)),
        **given,
    ).frames
    calls = pipe.schedule(16)
    assert steps == [(c.index, c.times) for c in calls]
    assert [chunk for chunk, _ in chunks] == [0, 1]
    assert torch.equal(torch.cat([x for _, x in chunks], dim=2), result)
    assert pipe.current_call is None
    zeroed = pipe(
        PROMPT, generator=seeded(), callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"] * 0}, **given
    ).frames
    assert relative(zeroed, result) > 1e-2


def test_interruption_stops_after_the_call(pipe: MagiPipeline) -> None:
    seen: list[int] = []

    def stop(p: MagiPipeline, index: int, times: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(index)
        p._interrupt = index == 3
        return {}

    result = pipe(PROMPT, num_frames=16, callback_on_step_end=stop, output_type="latent", generator=seeded(), **SIZE)
    assert seen == [0, 1, 2, 3]
    assert result.frames.shape[2] == 2  # the one chunk that was done

    def at_once(p: MagiPipeline, index: int, times: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        p._interrupt = True
        return {}

    with pytest.raises(MagiInputError, match="interrupted"):
        pipe(PROMPT, num_frames=16, callback_on_step_end=at_once, output_type="latent", **SIZE)


def test_the_integration_step_and_the_schedule_are_open(pipe: MagiPipeline) -> None:
    """What a cache policy takes over: which call it is, and how a chunk moves."""
    taken: list[tuple[MagiCall, float, float]] = []

    class Stepping(MagiPipeline):
        def integrate(self, latents: Tensor, velocity: Tensor, time: float, next_time: float) -> Tensor:
            assert self.current_call is not None
            taken.append((self.current_call, time, next_time))
            assert latents.shape == velocity.shape == (1, 16, 2, 6, 8)
            return super().integrate(latents, velocity, time, next_time)

    stepping = Stepping(**pipe.components)
    stepping.set_progress_bar_config(disable=True)
    given = {"num_frames": 16, "output_type": "latent", **SIZE}
    ours = stepping(PROMPT, generator=seeded(), **given).frames
    assert torch.equal(ours, pipe(PROMPT, generator=seeded(), **given).frames)
    calls = pipe.schedule(16)
    assert taken == [(c, *span) for c in calls for span in zip(c.active_times, c.next_times, strict=True)]


def test_24b_like_models_run_with_half_the_channels() -> None:
    pipe = tiny_pipeline(SHORT, GATED)
    assert pipe(PROMPT, num_frames=8, output_type="latent", generator=seeded(), **SIZE).frames.shape == (1, 16, 2, 6, 8)


def test_noise_and_prompt_may_be_given(pipe: MagiPipeline) -> None:
    embeds, mask = pipe.encode_prompt(PROMPT)
    noise = torch.randn(1, 16, 4, 6, 8, generator=seeded())
    given = {"num_frames": 16, "output_type": "latent"}
    by_prompt = pipe(PROMPT, generator=seeded(), **given, **SIZE).frames
    by_parts = pipe(prompt_embeds=embeds, prompt_attention_mask=mask, latents=noise, **given).frames
    assert torch.equal(by_parts, by_prompt)
    assert torch.equal(noise, torch.randn(1, 16, 4, 6, 8, generator=seeded()))  # not written to


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"height": 40}, "height"),
        ({"width": 16}, "width"),
        ({"num_frames": 3}, "num_frames"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt_embeds": torch.zeros(1, 64, 16)}, "prompt"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 3, 16), "prompt_attention_mask": torch.ones(1, 3)}, "embeds"),
        ({"output_type": "gif"}, "output_type"),
        ({"image": Image.new("RGB", (8, 8)), "prefix_latents": torch.zeros(1, 16, 1, 6, 8)}, "image"),
        ({"image": [Image.new("RGB", (8, 8))] * 2}, "image"),
        ({"image": "cat.png"}, "frames"),
        ({"video": [Image.new("RGB", (8, 8))] * 6}, "video"),
        ({"prefix_latents": torch.zeros(1, 16, 1, 6, 9)}, "prefix_latents"),
        ({"latents": torch.zeros(1, 16, 1, 6, 8)}, "latents"),
        ({"special_tokens": ("QUALITY",)}, "special_tokens"),
        ({"callback_on_step_end_tensor_inputs": ("noise",)}, "callback"),
    ],
    ids=lambda x: x if isinstance(x, str) else "_".join(x),
)
def test_bad_arguments_are_refused(pipe: MagiPipeline, given: dict[str, object], place: str) -> None:
    with pytest.raises(MagiInputError) as caught:
        pipe(**{"prompt": PROMPT, "num_frames": 8, "output_type": "latent", **SIZE, **given})
    assert place in caught.value.place
    assert "MC0724" in str(caught.value)
    assert caught.value.remedy in str(caught.value)


def test_steps_must_fit_the_window(pipe: MagiPipeline) -> None:
    with pytest.raises(MagiConfigError, match="window_size"):
        pipe(PROMPT, num_inference_steps=7, **SIZE)


def test_parts_may_be_missing_where_they_are_not_needed(pipe: MagiPipeline) -> None:
    bare = MagiPipeline(pipe.transformer, pipe.scheduler)
    with pytest.raises(MagiInputError, match="VAE"):
        bare(PROMPT, **SIZE)
    with pytest.raises(MagiInputError, match="text encoder"):
        bare(PROMPT, output_type="latent", **SIZE)
    with pytest.raises(MagiInputError, match="VAE"):
        bare(PROMPT, image=picture(), output_type="latent", **SIZE)
    with pytest.raises(MagiInputError, match="special tokens"):
        bare._captions(*pipe.encode_prompt(PROMPT), 2, 0, ("HQ",), False)


def test_another_number_of_steps_for_one_call(pipe: MagiPipeline) -> None:
    assert len(pipe.schedule(8, num_inference_steps=8)) == 2 * len(pipe.schedule(8))
    assert isinstance(pipe.scheduler, MagiScheduler)
    assert pipe.scheduler.settings.num_inference_steps == 4
