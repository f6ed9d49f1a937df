"""Model definitions that diffusers lacks, and the embedded pipeline folder."""
