"""Keras' applications and files of Keras models: Keras builds a network, and torch's own layers compute it."""
