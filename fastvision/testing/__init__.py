"""Sample inputs and error budgets for tests and benchmarks."""
