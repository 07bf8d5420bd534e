"""Weights in and out: open_clip's and Hugging Face's CLIP, and ours."""
