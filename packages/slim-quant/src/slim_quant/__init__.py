"""slim-quant: part of the Slim model-compression toolkit."""
