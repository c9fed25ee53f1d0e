"""A small base model of our own and a task from the user's own Python: no network needed."""
