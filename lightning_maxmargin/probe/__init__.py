"""What one look measures, without Lightning."""
