"""MAGI-1 in plain PyTorch (arXiv 2505.13211): transformer, codec, text conditioning, sampling loop."""
