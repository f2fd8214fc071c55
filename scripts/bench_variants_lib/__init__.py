"""Variants of edgeprof beside those of other tools. No part of the installed package."""
