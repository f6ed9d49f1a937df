import torch
from diffusers import TaylorSeerCacheConfig

config = TaylorSeerCacheConfig(
    cache_interval=5, disable_cache_before_step=10, max_order=1, taylor_factors_dtype=torch.bfloat16, use_lite_mode=True
)
