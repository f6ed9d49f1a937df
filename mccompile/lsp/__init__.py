"""The language server: what editors show of a policy while it is written."""
