"""What is wrong with the nodes of a job: looked at alone, together, and told with a remedy."""
