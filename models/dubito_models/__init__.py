"""The functional core: networks become programs, programs draw, draws become calibrated answers."""

import os

# Before anybody imports onnxruntime: its sessions would write to the user's home, and report to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
