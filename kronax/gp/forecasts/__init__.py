"""Forecasts along a Markov axis: the state of a process, which takes in new values as they come."""
