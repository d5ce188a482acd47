"""Security: who may call, how often, and for how long."""
