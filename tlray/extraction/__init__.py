"""Extraction: bring a table of embeddings to where its source is, in one process or on a Ray cluster."""
