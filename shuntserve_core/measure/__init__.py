"""Measuring on this machine what the estimators predict."""
