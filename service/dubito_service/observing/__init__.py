"""Observing: labels that come back, and what they say."""
