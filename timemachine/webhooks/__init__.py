"""The only user of httpx."""
