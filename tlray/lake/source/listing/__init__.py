"""What a source names before any image is read: manifests, listings made before, and the rules for which names are taken."""
