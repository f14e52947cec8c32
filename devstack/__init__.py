"""The stack that `make run` starts: embedded Postgres, Temporal's dev server, API and worker, as child processes."""
