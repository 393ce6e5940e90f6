"""What a result looks like: text, tables, plots and pages."""
