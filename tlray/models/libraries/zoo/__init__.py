"""Libraries made of torch modules with published weights: what their zoos know, and loading that is the same for all."""
