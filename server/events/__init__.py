"""Events: the bus they travel on."""
