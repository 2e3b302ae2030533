"""What the operations share: chips, the choice of an implementation, tile sizes, the wrapper around `pallas_call`."""
