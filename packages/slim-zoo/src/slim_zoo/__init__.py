"""slim-zoo: part of the Slim model-compression toolkit."""
