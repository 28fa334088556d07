"""Usage as it happens: events are stored durably and become records in the warehouse (specification section 10, correction 34)."""
