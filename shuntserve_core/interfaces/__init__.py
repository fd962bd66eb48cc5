"""The protocols that plugins implement, one file a kind."""
