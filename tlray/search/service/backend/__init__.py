"""What the service knows of a collection, and the threads in which it answers; nothing of HTTP."""
