"""What readers ask for: state, report, identification, export."""
