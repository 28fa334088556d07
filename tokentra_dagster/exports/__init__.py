"""Usage as files (specification section 12): a request, its rows from the marts, a writer per format, a manifest beside each file."""
