"""What is checked: each module has `run(record, place)`, and raises `Skip` where it cannot."""
