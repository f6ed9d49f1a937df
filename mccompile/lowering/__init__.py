"""Passes over the torch.fx graphs: a CapturedModel and a PolicyIR become a LoweredModel."""
