"""Spot sources and provisioners, bundled."""
