"""What a network is trained on: images of a source or activations of a table, augmented or as they are."""
