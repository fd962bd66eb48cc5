"""Plugins that come with shuntserve; each registers through the public entry-point group."""
