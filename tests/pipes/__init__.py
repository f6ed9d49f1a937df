"""Tiny random pipelines of diffusers, for the table of pipelines in docs/models.md."""
