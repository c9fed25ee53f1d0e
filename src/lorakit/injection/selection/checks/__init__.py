"""What keeps a selection from being injected, checked before anything is touched."""
