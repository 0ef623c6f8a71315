"""Metrics of runs → one page that compares them."""
