"""What clients talk to, bundled."""
