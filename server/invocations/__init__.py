"""Running functions: by slug, at once or queued, once or again, within their limits and seen by operators."""
