"""Search of policies: what their parameters may be, what each choice costs and keeps, and which of them are best."""
