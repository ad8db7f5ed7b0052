"""What would be the same in any paper; the method is in the numbered files."""
