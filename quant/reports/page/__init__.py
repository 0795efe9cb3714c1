"""Values to the HTML page."""
