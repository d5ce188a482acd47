"""Scheduling: who is let in, who draws next, and the threads that do the work."""
