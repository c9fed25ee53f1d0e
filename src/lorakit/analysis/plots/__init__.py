"""The pictures: one file for each kind."""
