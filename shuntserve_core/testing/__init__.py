"""For plugin authors: contract tests to subclass, and stand-ins for what a test cannot have."""
