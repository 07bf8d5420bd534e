"""Suites, prompts, zero-shot classification, statistics and plots."""
