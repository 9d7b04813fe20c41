"""Layers of a network: found, collected, pooled, frozen, cut after; and the heads that are trained on top."""
