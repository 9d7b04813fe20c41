"""What outlives a process of training: checkpoints, what is in them, and the fingerprint that finds them again."""
