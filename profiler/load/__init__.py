"""Load scenarios: what is asked (scenario), when requests come (schedule), the stage (stage), what it means (figures).

Empty on purpose: `profiler.study` takes the settings from here, and the stage takes the study.
"""
