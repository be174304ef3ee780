"""What stops a run that is going wrong, and says why: one protocol, every guard, the panel.

    base.py       `Guard`: its limits, and a rule on the figures of a run; `Seen`, those figures
    direction.py  is the right thing rewarded, and learned: canaries, signs, readings, direction
    drift.py      how far the policy went: KL, fluency, entropy, repetition, length, end tokens
    judged.py     what labellers and held-out prompts say: Andon cord, win rate, trend, ensemble
    panel.py      which guards watch, what they found, and the report

A guard reads; nothing here changes what is trained. Who computes the figures is the recipe
(`recipes/guarded.py`).
"""
