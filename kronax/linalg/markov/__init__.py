"""Processes that are Markov along an axis: all in time and memory linear in its length."""
