"""`tokentra collect`: applications send usage events over HTTP; what is answered with 200 is on disk (docs/collector.md, docs/decisions/0018)."""
