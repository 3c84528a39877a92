"""The contestants of the table: one loop for each library, each started as a process of its own."""
