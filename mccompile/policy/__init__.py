"""The policy IR on a page, its text form, and the planner that folds what is static. Knows no torch."""
