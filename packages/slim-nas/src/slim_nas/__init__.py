"""slim-nas: part of the Slim model-compression toolkit."""
