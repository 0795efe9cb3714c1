"""Speed: rounds in turn, instances, the FP32 variants of which the fastest is the baseline."""
