"""Minimising an objective: optimizer, one step, its loop, checkpoints and log."""
