"""What is shown to hold of a server over time: under load, with faults, with bad input (README.md)."""
