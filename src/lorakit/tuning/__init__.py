"""Search, studies and several machines: everything that runs on Ray."""
