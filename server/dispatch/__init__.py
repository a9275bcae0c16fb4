"""From events to runs: the ledger of deliveries, and the workers that take events up and run what they ask for."""
