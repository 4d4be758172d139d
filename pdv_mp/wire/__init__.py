"""Every message between processes and with clients, and the checks on them.

``protocol``: the client protocol of docs/protocol.md. ``engine``: front and workers, in columns.
``control``: supervisor and its children.
"""
