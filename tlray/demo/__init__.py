"""What the demo and the tests need on one machine: a real S3 server on loopback."""
