"""Choosers of the pipeline for a request, bundled."""
