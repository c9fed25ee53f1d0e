"""The web page: a window on a folder of runs, for people who would rather look than read.

The run directories are the truth. A page shows them and starts commands; it holds nothing that is
lost when it is closed.
"""

__all__: list[str] = []
