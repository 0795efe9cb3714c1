"""A job in a child process: its environment, limits, progress, and a crash that becomes an error."""
