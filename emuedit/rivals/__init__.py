"""What people would use instead of our pair synthesis, written for the same painters, so that the two can be measured."""
