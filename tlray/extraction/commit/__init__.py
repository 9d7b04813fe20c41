"""The driver's side of the commit protocol: what workers have written becomes visible, in parts of their final size."""
