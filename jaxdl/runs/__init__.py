"""A run of a script: its folder, its flags, its signals, and the list of finished runs."""
