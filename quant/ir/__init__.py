"""A model as a graph of values, read from either of Paddle's formats, and what may be said of it."""
