"""The operations of the language: on numbers, and on intervals of numbers."""
