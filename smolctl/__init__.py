"""The smolctl application: command line, studies, analysis and reports."""
