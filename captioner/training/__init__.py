"""Training: activation cache, cross-entropy, self-critical training, resumable state."""
