"""Policy text to a checked policy: grammar, syntax tree, checker, diagnostics, formatter. Knows no torch."""
