"""What the Spark jobs share."""
