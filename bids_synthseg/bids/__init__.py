"""The outside world of BIDS: what is read and what is written; no torch."""
