"""Comparison of tuned plans: every method's steps, guidance and own settings are found by the same search."""
