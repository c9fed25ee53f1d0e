"""The run directories of a folder: their states, processes, queue, notes and trash.

Everything is read from files and process ids, so that any number of programs may look at the same
folder and none has to stay open. Importing this package imports neither torch nor a web library.
"""

__all__: list[str] = []
