"""What the API, the workflows, the activities and the worker share."""
