"""Initializations: the values that a fresh adapter begins with."""
