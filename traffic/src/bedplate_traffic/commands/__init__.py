"""The commands: each module has `parse(arguments)`, and `run(options)`, which returns the exit status."""
