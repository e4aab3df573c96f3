"""Latent diffusion, in the order of reading: `task` (the paper: both phases, drawing, the builder), `showing` (what evaluations and
`predict` show of it).
"""
