"""Exports: formats, manifest and destinations."""
