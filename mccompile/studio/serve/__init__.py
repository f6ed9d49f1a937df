"""A local page on which one writes a policy, sees its plan, runs it, and looks at what it did."""
