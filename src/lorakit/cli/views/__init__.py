"""Views of commands on a terminal."""
