"""HTML pages that need nothing else: the report of a learner, tables, templates."""
