"""The forward pass of the Llama family, its configuration and its weights."""
