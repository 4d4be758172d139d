"""What workers compute with: models and caches, planned, loaded once, and mapped by all."""
