"""Data on its way to a model: files and hub names in, batches of numpy arrays out; no jax arrays.

sources      load_rows: a file or hub name -> rows that know their file and line
labelled     rows -> texts with the probabilities of their classes
formats      rows -> texts, prompts, examples, preferences (TRL's column names, HH-RLHF, Alpaca)
chat         texts, prompts, examples, preferences -> tokens and loss masks
arrays       tokens -> fixed-shape rows: wrapped, packed, padded, pairs, prompts
pipeline     fixed-shape rows -> shuffled, resumable batches
tokenizer    train, make, load
dialogue     the "Human: ... Assistant: ..." strings of HH-RLHF
preferences  pairs from scored samples; preference files
rows         what all of these pass on: items, where each came from, what was left out and why
"""
