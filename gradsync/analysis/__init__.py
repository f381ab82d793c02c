"""From results files to a table, a report and plots. Nothing here imports torch."""
