"""An FP32 graph to its simulation, and a simulation to INT8."""
