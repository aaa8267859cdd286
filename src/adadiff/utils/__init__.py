"""Tools that are not about diffusion: errors, files written atomically, fingerprints, seeds, ranges, timing."""
