"""Other formats of adapters: loralib, GGUF, portable adapters, files beside the adapter."""

__all__: list[str] = []
