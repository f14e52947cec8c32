"""Rules and structs: no I/O."""
