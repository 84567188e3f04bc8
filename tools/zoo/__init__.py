"""The table of models: what each of them costs, and what becomes of it on the way to a device."""
