"""Extraction spread over a Ray cluster."""
