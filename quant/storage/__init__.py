"""Files on disk, whole or absent: outputs, the cache, checkpoints, downloads. Knows nothing of models."""
