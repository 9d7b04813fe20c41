"""Words as queries and as classes, with a network of two towers that is trained while the tests run."""
