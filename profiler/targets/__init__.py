"""Machines that workers run on. A target is a command prefix that starts a worker and gives us its stdin and stdout."""
