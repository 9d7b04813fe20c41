"""The keys of each command, one file for the commands of one subject."""
