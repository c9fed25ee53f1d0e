"""What an update may have beside lora_A and lora_B: one class for each variant, and their table."""

__all__: list[str] = []
