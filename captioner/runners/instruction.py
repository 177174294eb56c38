"""What a model that follows instructions is asked where the user asks nothing."""

__all__ = ["DEFAULT_INSTRUCTION"]

DEFAULT_INSTRUCTION = (
    "Write alt text for this photo: one plain sentence of at most 25 words that says who or what is in it, "
    "what they do and where. Begin with the subject itself, not with words such as “this image shows”. "
    "Say only what can be seen. Answer with the sentence alone."
)
"""For alt text, as screen readers speak it: https://www.w3.org/WAI/tutorials/images/informative/."""
