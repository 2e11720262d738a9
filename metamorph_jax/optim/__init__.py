"""Which parameters are trained, with what schedule and optimiser."""
