"""Backbones of texts: word vectors and sentence encoders, each a text model with one method, and the encoder around them."""
