"""Extraction on a Ray cluster: how it is shared out, and what actors and tasks do."""
