"""Images and texts in any form that Python has, through a network, to vectors."""
