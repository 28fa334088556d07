"""Usage as files that arrive (specification section 12): a request, its rows from the marts, a writer per format, a manifest, destinations."""
