"""What a model of transformers is loaded from: its files, its configuration, its tensors."""
