"""A sample from a file: columns, formats, readers, users' own readers, preprocessed images."""
