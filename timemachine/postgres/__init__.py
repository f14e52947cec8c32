"""The only user of asyncpg."""
