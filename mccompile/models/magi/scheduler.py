"""The sampling settings as a diffusers component, so that a pipeline folder carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mccompile.models.magi.config import MagiSettings, TimeTransform

_NAMES = tuple(f.name for f in fields(MagiSettings))


class MagiScheduler(SchedulerMixin, ConfigMixin):
    """Holds MagiSettings; which chunk runs when is `mccompile.models.magi.schedule.magi_schedule`.

    Raises MagiConfigError (MC0721) for settings that contradict.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_inference_steps: int = 64,
        window_size: int = 4,
        chunk_width: int = 6,
        noise2clean_kvrange: Sequence[int] = (5, 4, 3, 2),
        clean_chunk_kvrange: int = 1,
        clean_t: float = 0.9999,
        time_transform: TimeTransform = "sd3",
        shortcut_mode: str = "8,16,16",
        distilled: bool = False,
        nearly_clean_threshold: float = 0.3,
        nearly_clean_scale: float = 0.7,
        cfg_t_range: Sequence[float] = (0.0, 0.0217, 0.1, 0.3, 0.999),
        prev_chunk_scales: Sequence[float] = (1.5, 1.5, 1.5, 1.0, 1.0),
        text_scales: Sequence[float] = (7.5, 7.5, 7.5, 0.0, 0.0),
        latent_scale: float = 0.18215,
        fps: int = 24,
        temporal_factor: int = 4,
    ) -> None:
        given = {name: self.config[name] for name in _NAMES}
        # A configuration that was read from JSON holds lists.
        self.settings = MagiSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})  # type: ignore[arg-type]

    @classmethod
    def from_settings(cls, settings: MagiSettings) -> MagiScheduler:
        return cls(**asdict(settings))

    def with_steps(self, num_inference_steps: int | None) -> MagiSettings:
        """The settings, with another number of steps if one is given."""
        if num_inference_steps is None:
            return self.settings
        return replace(self.settings, num_inference_steps=num_inference_steps)
