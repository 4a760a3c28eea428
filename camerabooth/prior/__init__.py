"""Training of the base model (the prior) that test-time training starts from."""
