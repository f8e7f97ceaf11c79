"""What a command is as a process: flags, statuses, signals, memory, whole files, and its group."""
