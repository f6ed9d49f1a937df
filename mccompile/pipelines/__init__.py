"""What the compiler knows of pipelines: one driver per kind, clocks, recorded calls, budgets at a declared size."""
