"""slim-distill: part of the Slim model-compression toolkit."""
