"""The regression of tomorrow's sunshine in Basel."""
