"""Sample inputs and error budgets, shared by the tests and the benchmarks."""
