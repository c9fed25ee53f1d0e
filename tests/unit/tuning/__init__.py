"""Tests of searches and studies, on one Ray."""
