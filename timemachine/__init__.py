"""What the API, the workflows, the activities and the worker share."""

VERSION = "0.1.0"
