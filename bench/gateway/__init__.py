"""What the HTTP gateway costs: CPU per event, and time added to the first token."""
