"""Measure how fast each rank is, store the speeds in a table, and predict from it."""
