"""Backbones: from what a user asks for to a recipe and a network with weights, and back from a recipe."""
