"""Factorizes linear layers into two thin ones."""
