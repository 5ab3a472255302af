"""A short system prompt.

That of the model's template is longer than most questions, and mlx takes a tenth of a second for each of its
tokens on a processor.
"""

from __future__ import annotations

SHORT_PROMPT = {"role": "system", "content": "x"}
