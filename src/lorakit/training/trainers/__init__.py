"""The trainers of the tasks, and what they share."""
