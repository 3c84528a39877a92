"""The experiments beside what a user would pick instead: same data, same work, one run, alternating."""
