"""From the metrics that runs logged to one page that compares them."""
