"""One folder per operation: a float32 reference that reads like the equation, and the implementations that compute it."""
