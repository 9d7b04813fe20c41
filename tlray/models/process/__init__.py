"""What a process has once: its devices and number formats, and the vision libraries that it imports."""
