"""Runs below a folder, seen from outside: what the studio's pages read and start."""
