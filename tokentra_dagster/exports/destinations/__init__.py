"""Where exports go: a folder, an S3-compatible store, e-mail, a webhook."""
