"""From image bytes to the patches a vision tower reads."""
