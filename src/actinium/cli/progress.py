"""Which progress bars of other libraries a command shows."""

from __future__ import annotations

__all__ = ["hide_weight_bars"]


def hide_weight_bars() -> None:
    """Hide transformers' bar over the tensors of a file; downloads keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    enable_progress_bars()
