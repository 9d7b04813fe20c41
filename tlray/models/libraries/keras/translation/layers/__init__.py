"""Torch's layers for those of Keras: which one computes the same, and with what weights."""
