"""slim-prune: part of the Slim model-compression toolkit."""
