"""What Python users call; `import tlray` gives its names, each loaded when it is first used.

It changes nothing of the process that it runs in: no allocator, signal handler, thread count, warning filter or log level.
"""
