"""From a volume to posteriors."""
