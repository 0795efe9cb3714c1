"""Tables of op types: what Paddle says of them, activations, arithmetic."""
