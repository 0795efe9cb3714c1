"""Quantization-aware training of programs, layers and inference models."""
