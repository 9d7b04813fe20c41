"""Nearest neighbours: FAISS indexes, exact comparison and their recall."""
