"""Advice: which network, which layer and which way to train, for the labelled images at hand, judged by trying."""

KIND = "advice"
"""`kind` of the document that `tlray advise` writes, by which `tlray report` knows it."""
