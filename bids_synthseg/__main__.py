"""`python -m bids_synthseg` is the App, for places where scripts are not on the path."""

from bids_synthseg.cli import main

if __name__ == "__main__":
    main()
