"""Make a checked configuration out of what the user typed."""
