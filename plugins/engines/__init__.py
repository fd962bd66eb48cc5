"""What runs a pipeline, bundled."""
