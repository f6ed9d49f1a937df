"""Fits what policies need for a model: polynomials, ratios, errors by age, sensitivities."""
