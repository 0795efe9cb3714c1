"""A program run on oneDNN without Paddle's executor: kernels, memory, a plan for each set of input shapes."""
