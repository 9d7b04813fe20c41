"""Loading networks of Keras: applications, and files of models."""
