"""Connectors between vision tower and language model: one file each, one name each in `registry.CONNECTORS`."""
