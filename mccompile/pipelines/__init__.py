"""What the compiler knows about pipelines: a driver per kind, clocks, recorded calls, budgets at a declared size."""
