"""What else Temporal offers for a call at a time: the least that a workflow can be, and a standalone activity."""
