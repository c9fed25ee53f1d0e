"""The thin products in C: the sources, the library compiled of them, and its functions."""
