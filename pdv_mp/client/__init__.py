"""Clients of a server, and servers of one's own."""
