"""Segmentation of T1w and T2w brain MRI from fetus to adult, as a BIDS App."""

__version__ = "0.1.0"
