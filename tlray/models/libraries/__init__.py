"""The libraries that pretrained networks come from, each in a file of its own; `names` finds them by their names."""
