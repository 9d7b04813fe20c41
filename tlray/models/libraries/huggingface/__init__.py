"""Vision models of Hugging Face's transformers, from a folder or the hub, with the text towers of those that have one."""
