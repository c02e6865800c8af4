"""`infinity-mm doctor`: is this machine fit for what is about to be started? Every finding with its fix."""
