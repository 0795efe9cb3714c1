"""The models that Paddle's INT8 tutorials publish: catalogue, download, layouts."""
