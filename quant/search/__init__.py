"""Which ops stay in higher precision, for accuracy or for speed."""
