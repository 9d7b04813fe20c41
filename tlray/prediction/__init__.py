"""`tlray predict`: a model over new images."""
