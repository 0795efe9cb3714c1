"""`quant.toml`: its keys, its drafts, what a directory of models holds."""
