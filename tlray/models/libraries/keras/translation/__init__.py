"""From the graph of a Keras model to a network of torch's own layers, which can be folded, traced, trained and exported."""
