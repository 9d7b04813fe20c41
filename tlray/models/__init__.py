"""Pretrained networks: backbones, their weights and taps, and the encoder. Knows nothing of the lake, needs no Ray."""
