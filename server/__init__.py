"""The server: knows tenants and nothing of processes. Layers and their one direction are checked by tests/unit."""
