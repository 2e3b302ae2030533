"""Training: a pure step, and events between steps."""
