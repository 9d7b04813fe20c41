"""Weights: the ways to name them, reading their files safely, finding what fits a network in them, and their hash."""
