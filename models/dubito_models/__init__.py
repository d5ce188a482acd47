"""The functional core: networks become programs, programs draw, draws become calibrated answers."""
