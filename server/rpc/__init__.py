"""The wire: knows protobuf, gRPC status and metadata, and nothing else. The only package that sees `gen`."""
