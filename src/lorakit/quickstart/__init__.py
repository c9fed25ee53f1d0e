"""A small base model in the package and a task from the local Python; needs no network."""
