"""Heads trained on the vectors of a table."""
