"""Random choice of tokens, the same in every engine and on every device."""
