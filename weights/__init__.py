"""Shipped networks: installed as the package `bids_synthseg.weights`, read with importlib."""
