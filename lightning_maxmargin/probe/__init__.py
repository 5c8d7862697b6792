"""What one evaluation measures, without Lightning."""
