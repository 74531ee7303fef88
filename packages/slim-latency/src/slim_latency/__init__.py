"""slim-latency: part of the Slim model-compression toolkit."""
