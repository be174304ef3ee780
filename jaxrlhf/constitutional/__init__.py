"""Constitutional AI as data programs: critique and revise, and labels by a model that judges.

Everything a model reads is text made from templates that are data of the constitution, so real
models and sandbox ones take one path. Nothing here trains, and nothing here knows a recipe.
"""
