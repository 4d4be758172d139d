"""The concurrent test: one prompt, asked more and more often at once, until the server breaks."""
