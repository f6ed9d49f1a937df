"""A compiled model as one file: written, read back, refused where it is of another model or machine."""
