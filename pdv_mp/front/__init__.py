"""The front process: clients' socket, tokenizer, detokenizer and the journal of open requests."""

from pdv_mp.front.front import run_front

__all__ = ["run_front"]
