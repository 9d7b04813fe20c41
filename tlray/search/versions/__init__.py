"""Versions of an index at rest: its card, its files, publishing and loading."""
