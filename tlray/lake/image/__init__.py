"""Images: from the bytes of a file to resized RGB pixels."""
