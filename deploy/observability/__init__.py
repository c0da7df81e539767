"""What is generated from the metrics' declarations: their page, and the dashboards."""
