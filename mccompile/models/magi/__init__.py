"""MAGI-1 in plain PyTorch: the model, its checkpoints, and the chunk-wise pipeline. See docs/magi1.md."""

from mccompile.models.magi.config import (
    MAGI_4_5B,
    MAGI_24B,
    MagiModelConfig,
    MagiSettings,
    OfficialConfig,
    read_official_config,
)
from mccompile.models.magi.errors import (
    MagiCheckpointError,
    MagiConfigError,
    MagiError,
    MagiInputError,
    MagiLayoutError,
)
from mccompile.models.magi.memory import MemoryEstimate, estimate_memory
from mccompile.models.magi.pipeline import MagiPipeline
from mccompile.models.magi.schedule import MagiCall, magi_schedule
from mccompile.models.magi.scheduler import MagiScheduler
from mccompile.models.magi.text import MagiSpecialTokens
from mccompile.models.magi.transformer import MagiTransformer3DModel
from mccompile.models.magi.vae import AutoencoderKLMagi

__all__ = [
    "MAGI_4_5B",
    "MAGI_24B",
    "AutoencoderKLMagi",
    "MagiCall",
    "MagiCheckpointError",
    "MagiConfigError",
    "MagiError",
    "MagiInputError",
    "MagiLayoutError",
    "MagiModelConfig",
    "MagiPipeline",
    "MagiScheduler",
    "MagiSettings",
    "MagiSpecialTokens",
    "MagiTransformer3DModel",
    "MemoryEstimate",
    "OfficialConfig",
    "estimate_memory",
    "magi_schedule",
    "read_official_config",
]
