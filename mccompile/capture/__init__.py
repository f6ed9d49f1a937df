"""A model to a CapturedModel: torch.export, blocks, the token axis of every value, dependence, legality."""
