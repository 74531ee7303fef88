"""Architectures for benchmarks that slim-zoo does not have, in the published sizes, with random weights."""
