"""Values to text: tables, charts, lines for terminal, Markdown and JSON. Never runs a model."""
