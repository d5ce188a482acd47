"""Versions: which are served, and how they come and go."""
