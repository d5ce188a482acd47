"""The imperative shell: gRPC, scheduling and threads around the functional core in dubito_models."""
