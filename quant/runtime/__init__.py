"""Running one model, by Paddle's executor or on oneDNN directly."""
