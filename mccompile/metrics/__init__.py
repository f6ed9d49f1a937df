"""How near a video is to another one: `read_clip` reads both, `measure` compares them; each measure stands alone."""

from mccompile.metrics.clips import Clip, read_clip
from mccompile.metrics.measured import Measured, measure, measure_clips
from mccompile.metrics.motion import flicker, moving, psnr_where
from mccompile.metrics.perceived import lpips, ms_ssim
from mccompile.metrics.pixels import psnr, psnr_per_frame, sharpness, ssim
from mccompile.metrics.vbench_process import vbench

__all__ = [
    "Clip", "Measured", "flicker", "lpips", "measure", "measure_clips", "moving", "ms_ssim", "psnr", "psnr_per_frame",
    "psnr_where", "read_clip", "sharpness", "ssim", "vbench",
]  # fmt: skip
