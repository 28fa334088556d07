"""Two simulated organisations behind OpenAI's and Anthropic's usage APIs, served over HTTP (see `server.py`)."""
