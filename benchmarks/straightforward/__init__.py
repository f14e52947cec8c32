"""The straightforward implementation, to compare with: sleep in the workflow, a regular activity, SDK defaults."""
