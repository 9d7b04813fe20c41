"""open_clip's models: networks of two towers, by their names and tags, from a folder, the hub or a checkpoint."""
