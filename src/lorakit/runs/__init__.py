"""Runs as files: what is below a directory, and what a page writes there."""
