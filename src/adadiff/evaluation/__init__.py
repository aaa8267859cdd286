"""Evaluation: the cost of sampling and the quality of its images."""
