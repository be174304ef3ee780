"""Hugging Face folders, in and out: config.json, names of tensors, safetensors, reward heads."""
