"""The contestants of the table: a training loop for each library, each in its own process."""
