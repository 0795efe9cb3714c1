"""The documents, tested: what they name exists, what is generated is current."""
