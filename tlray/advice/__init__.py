"""Advice: which network, which layer and which way to train, for the labelled images at hand, judged by trying."""
