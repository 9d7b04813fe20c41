"""Places that are only read: sources on web servers."""
