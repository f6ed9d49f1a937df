"""Passes over the torch.fx graph: a CapturedModel and a Plan become a LoweredModel."""
