"""Usage as the FinOps Open Cost and Usage Specification has it, dataset Cost and Usage (docs/decisions/0016)."""
