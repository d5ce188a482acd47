"""The wire contract: protobuf messages, gRPC stubs, and the one codec between arrays and `Tensor`."""
