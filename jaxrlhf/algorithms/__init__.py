"""Training methods: each file turns losses and a model into an `Algorithm` of three functions."""
