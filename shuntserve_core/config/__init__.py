"""Configuration: TOML into typed values, with errors that say what would be right."""
