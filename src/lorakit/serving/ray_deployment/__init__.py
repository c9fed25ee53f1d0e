"""The server on Ray Serve: replicas that have the models, and an entrance that finds one.

The entrance takes requests from Ray's HTTP proxy, reads which model they name, and hands each to a
replica, which answers with the same application as a server without Ray. Ray must be installed to
import these modules.
"""

__all__: list[str] = []
