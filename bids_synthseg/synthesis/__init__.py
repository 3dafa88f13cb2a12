"""From a label map to an image that never existed, on any device."""
