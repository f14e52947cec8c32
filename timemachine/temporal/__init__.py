"""The only user of Temporal's client outside of activities and the API."""
