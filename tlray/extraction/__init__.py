"""Extraction: what happens in a run, from the listing of the source to the committed table."""
