"""Taking a task out: stand-alone networks and exported files."""
