"""Measurements: what is covered, how fast it is, how far from the hardware's limit."""
