"""Evaluations that need no training: what a model prefers to say, and what it refuses.

`suite` lists them. Each says which public files it reads, what it asks of a model and what figures
follow from the rows that come back; the figures never ask the model again.
"""
