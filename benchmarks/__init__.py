"""Timings, always as the ratio of two things measured in one run."""
