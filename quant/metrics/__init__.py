"""Numbers of arrays: scores, paired statistics, errors of tensors, looks at a run before it ends."""
