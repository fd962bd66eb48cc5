"""What keeps pipelines running on nodes that come and go."""
