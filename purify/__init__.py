"""Adversarial purification with score-based generative models."""
