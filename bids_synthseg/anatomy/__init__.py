"""What a labelled brain volume is: numpy and scipy only, no files of results, no torch."""
