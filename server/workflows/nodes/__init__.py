"""What nodes do, one module a type: what its configuration may be, and one attempt at it."""
