"""What a method costs and what its images are worth."""
