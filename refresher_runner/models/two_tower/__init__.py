"""Two towers, in the order of reading: `task` (the paper: towers, objective, phases), `objectives` (what stands for the softmax over all
items), `serving` (what is shown, recommended and exported).
"""
