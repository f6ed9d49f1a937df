"""Compiles the graphs of a block for GPUs that are not there, and reads what came of it: `make gpu-check`.

`pretend` makes a CUDA build of torch believe in a GPU. `roles` records the graphs of a model on the CPU and moves them.
`packages` compiles them. `reading` counts kernels, calls and registers. Nothing runs, so nothing is timed or tuned:
what Triton would measure is taken as it comes, and torch's attention as it chooses for such a GPU.
"""
