"""Training: a pure step, events between steps, and the loop that runs both from any interruption on."""
