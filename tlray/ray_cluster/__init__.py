"""The Ray cluster: its address, joining it, and what its errors mean."""
