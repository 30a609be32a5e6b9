"""Discrete sites that are summed out: which, over which states, and in which order."""
