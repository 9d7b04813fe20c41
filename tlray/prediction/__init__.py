"""Prediction: a trained model run over a source."""
