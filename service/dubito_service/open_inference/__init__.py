"""The Open Inference Protocol, so that clients of KServe, Triton and MLServer can ask this server too."""
