"""What a run will cost, before it is started, and whether that came true."""
