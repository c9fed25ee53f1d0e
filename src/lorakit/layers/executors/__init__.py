"""What computes the output of adapted layers from their operands; each layer holds one of these.

- `single`: the base alone, or the updates that act on all rows
- `siblings`: layers that read one input, together
- `fused_mlp`: a whole MLP as one node
- `per_row`: an adapter for each batch row, or for each segment of a packed sequence
"""

__all__: list[str] = []
