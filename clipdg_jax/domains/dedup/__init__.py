"""Which records of a pool are copies of others: signatures, candidates, confirmation, clusters."""
