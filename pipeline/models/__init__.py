"""Inference with torch: one model over pairs, two towers, and the engine under both."""
