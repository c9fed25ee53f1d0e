"""Trained adapters for other servers: vLLM, and Ray Serve with vLLM."""

__all__: list[str] = []
