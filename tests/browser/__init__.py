"""Tests of the studio in a browser."""
