"""Change data capture: from the tenants' write-ahead log into the stream of events, each change once."""
