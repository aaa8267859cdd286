"""A denoiser under an exit policy, row by row."""
