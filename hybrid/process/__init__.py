"""What a command is as a process: flags and exit statuses, signals, memory, whole files."""
