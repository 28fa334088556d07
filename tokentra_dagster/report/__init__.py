"""`tokentra report`: one self-contained HTML page of an organisation's period. `collect` runs the analyses, `page` writes them."""
