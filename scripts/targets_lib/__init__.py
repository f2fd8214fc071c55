"""Devices made here for end-to-end runs: an account behind a real sshd, and an emulated arm64 board."""
